"""Imports go downwards only, form no circle, and leave `transformers` to the parts that need it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gm_discrete"

# A part may import from the rows below its own, never from one above. Parts of one row do not import each other.
ROWS = [
    {"__main__"},
    {"command"},
    {"training", "evaluation", "pictures", "serving"},
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
    {"configurable", "json_text", "renamed"},
    {"arguments"},
]
RANK = {part: len(ROWS) - row for row, parts in enumerate(ROWS) for part in parts}
ALLOWED_SIBLINGS = {("training", "evaluation")}  # the trainer evaluates
TRANSFORMERS = {"command", "serving", "nn", "models", "generation", "training", "data", "evaluation"}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> Iterator[str]:
    """Dotted names of every import in the file, those inside functions and for type checking included."""
    package = list(file.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


FILES = sorted(file for file in PACKAGE.rglob("*.py") if part_of(file) != "__init__")
MODULES = {module_of(file): file for file in PACKAGE.rglob("*.py")}
EDGES = {
    (part_of(file), name.split(".")[1]): f"{file.relative_to(ROOT)} imports {name}"
    for file in FILES
    for name in imported(file)
    if name.startswith("gm_discrete.") and name.split(".")[1] in RANK
}
# `import gm_discrete` and `from gm_discrete import Name`: of the package itself, which is above all parts.
FROM_THE_TOP = [
    f"{file.relative_to(ROOT)} imports {name}: import it from the module of gm_discrete that defines it"
    for file in FILES
    for name in imported(file)
    if name == "gm_discrete" or (name.startswith("gm_discrete.") and name.split(".")[1] not in RANK)
]


def module_edges() -> dict[str, set[str]]:
    """module -> the modules of the library that it imports; a name imported from a package counts as the package."""
    edges: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        found = set()
        for name in imported(file):
            target = name if name in MODULES else name.rpartition(".")[0]
            if target in MODULES and target != module:
                found.add(target)
        edges[module] = found
    return edges


def test_layers__the_walk_finds_the_library() -> None:
    assert len(FILES) > 20
    assert {("models", "nn"), ("objective", "generators"), ("nn", "paths")} <= EDGES.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_layers__every_part_has_a_row(file: Path) -> None:
    assert part_of(file) in RANK, f"{part_of(file)} is in no row of ROWS"


def test_layers__imports_go_downwards() -> None:
    upwards = [line for (part, other), line in EDGES.items() if part != other and RANK[other] > RANK[part]]
    assert upwards == []


def test_layers__nothing_is_imported_from_the_package_itself() -> None:
    assert FROM_THE_TOP == []


def test_layers__parts_of_one_row_do_not_import_each_other() -> None:
    siblings = [
        line
        for (part, other), line in EDGES.items()
        if part != other and RANK[part] == RANK[other] and (part, other) not in ALLOWED_SIBLINGS
    ]
    assert siblings == []


def test_layers__no_circle_between_modules() -> None:
    """Imports for type checking count. Within a package, `__init__` imports its modules, and they do not import it."""
    try:
        TopologicalSorter(module_edges()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_layers__transformers_and_its_kin_stay_in_the_outer_parts(file: Path) -> None:
    foreign = {name.split(".")[0] for name in imported(file)} & {"transformers", "datasets", "accelerate", "evaluate"}
    assert not foreign or part_of(file) in TRANSFORMERS


def test_layers__a_path_is_imported_without_transformers() -> None:
    program = """
import sys
from gm_discrete import MaskedPath, conditional_loss, likelihood_bound, simulate
print([name for name in ("transformers", "datasets", "accelerate", "evaluate") if name in sys.modules])
from gm_discrete import GMModel
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_layers__the_library_imports_neither_recipes_nor_benchmarks_nor_tests() -> None:
    for file in FILES:
        assert not {name.split(".")[0] for name in imported(file)} & {"recipes", "benchmarks", "tests"}, file


def test_layers__no_mixins_and_a_typing_marker() -> None:
    classes = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if name.endswith("Mixin")] == []
    assert (PACKAGE / "py.typed").exists()
