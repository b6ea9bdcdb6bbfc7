"""Imports go downwards only, and `transformers` stays where it belongs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gm_discrete"

# A part may import from the rows below its own. Parts of one row are siblings: at most one way between two of them.
ROWS = [
    {"training", "evaluation", "pictures"},
    {"convert"},
    {"models"},
    {"generation"},
    {"nn"},
    {"data"},
    {"likelihood"},
    {"objective"},
    {"samplers"},
    {"process"},
    {"paths"},
    {"generators"},
    {"configurable"},
]
RANK = {part: len(ROWS) - row for row, parts in enumerate(ROWS) for part in parts}
TRANSFORMERS = {"nn", "models", "generation", "training", "data", "evaluation"}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Dotted names of every import in the file, those inside functions and of type checking too."""
    package = ["gm_discrete", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


FILES = sorted(file for file in PACKAGE.rglob("*.py") if part_of(file) != "__init__")
EDGES = {
    (part_of(file), name.split(".")[1]): f"{file.relative_to(PACKAGE.parent)} imports {name}"
    for file in FILES
    for name in imported(file)
    if name.startswith("gm_discrete.")
}


def test_the_walk_sees_the_library() -> None:
    assert len(FILES) > 20
    assert {("models", "objective"), ("paths", "generators"), ("nn", "paths")} <= EDGES.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_part_has_its_row(file: Path) -> None:
    assert part_of(file) in RANK, f"{part_of(file)} is in no row of RANK"


def test_imports_go_downwards() -> None:
    upwards = [line for (part, other), line in EDGES.items() if part != other and RANK[other] > RANK[part]]
    assert upwards == []
    assert [
        str(file) for file in FILES if "gm_discrete" in imported(file)
    ] == []  # the whole package is above every part


def test_siblings_do_not_import_each_other() -> None:
    for part, other in EDGES:
        if part != other and RANK[part] == RANK[other]:
            assert (other, part) not in EDGES, EDGES[part, other]
    assert not {other for part, other in EDGES if part == "samplers"} & {"models", "objective"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_transformers_and_its_kin_stay_in_the_outer_parts(file: Path) -> None:
    foreign = {name.split(".")[0] for name in imported(file)} & {"transformers", "datasets", "accelerate", "evaluate"}
    assert not foreign or part_of(file) in TRANSFORMERS


def test_nothing_imports_recipes_benchmarks_or_tests() -> None:
    outside = {"recipes", "benchmarks", "tests", "reference", "laws"}
    for file in FILES:
        assert not {name.split(".")[0] for name in imported(file)} & outside, file
