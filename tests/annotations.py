"""Counts parameters that are annotated as bare `Any`: `python tests/annotations.py` prints them by file.

A parameter counts if its annotation is `Any` itself, not if `Any` stands inside of another type. `*args` and `**kwargs`
count like every other parameter; `self` and `cls` do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gm_discrete"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function of the library."""

    file: Path
    line: int
    function: str
    name: str
    annotation: str | None

    @property
    def is_any(self) -> bool:
        return self.annotation == "Any"


def parameters(package: Path = PACKAGE) -> Iterator[Parameter]:
    """Every parameter of every function, `self` and `cls` excepted."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                for argument in every:
                    if argument is not None and argument.arg not in ("self", "cls"):
                        annotation = None if argument.annotation is None else ast.unparse(argument.annotation)
                        yield Parameter(file, argument.lineno, node.name, argument.arg, annotation)


def main() -> None:
    found = list(parameters())
    bare = [parameter for parameter in found if parameter.is_any]
    for parameter in bare:
        print(f"{parameter.file.relative_to(PACKAGE.parent)}:{parameter.line} {parameter.function}({parameter.name})")
    print(f"{len(bare)} of {len(found)} parameters are bare Any: {100 * len(bare) / len(found):.2f} %")


if __name__ == "__main__":
    main()
