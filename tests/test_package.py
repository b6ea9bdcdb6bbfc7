"""The package: what wheel and sdist hold, and that the installed wheel works where there is no clone."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = {"gm_discrete/serving/": "serve", "gm_discrete/evaluation/harness.py": "lm_eval", "recipes/": "recipes"}
"""Modules that need an extra → the extra."""
FEATURES = ("pictures", "lm_eval", "peft", "proteins", "serve", "recipes", "scores")
"""Extras that users install."""
DATA = {".html", ".typed"}
"""Suffixes of files in the package that are no Python."""
READS = """
import gm_discrete
from gm_discrete.command import main
print(gm_discrete.__file__, end="\\n---\\n", flush=True)
main(["info", "run", "--json"])
print("---", flush=True)
main(["generate", "run", "--prompt", "to be", "--num-steps", "2"])
"""
"""What is done with a run, in one process: most of its time is the import of torch and transformers."""


def run(*words: object, cwd: Path) -> str:
    """The output of a program, without the path of the clone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def build(source: Path, folder: Path, *options: str) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder, *options, cwd=source)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which finds all other packages in that of the tests."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=environment)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # Behind the packages of the new environment, and without the .pth files of the other, which name the clone.
    others = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    (packages / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    return environment / "bin"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def imports(node: ast.AST, inner: bool = False) -> Iterator[tuple[str, bool]]:
    """The packages that a module imports, and whether it does so in a function; those for type checkers are left out."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING":
            continue
        if isinstance(part, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in part.names] if isinstance(part, ast.Import) else [str(part.module)]
            yield from ((name.partition(".")[0], inner) for name in names)
        yield from imports(part, inner or isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))


def declared(requirements: Sequence[str], extras: Mapping[str, Sequence[str]]) -> set[str]:
    """The names of required packages, and of those of the extras of this package that are required."""
    found: set[str] = set()
    for requirement in map(Requirement, requirements):
        found.add(canonicalize_name(requirement.name))
        for extra in requirement.extras if requirement.name == "gm_discrete" else ():
            found |= declared(extras[extra], extras)
    return found


def test_dependencies__hold_what_is_imported() -> None:
    """An extra may be missing where its modules are not imported, and where a function imports it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    always = declared(project["dependencies"], extras)
    allowed = {place: always | declared(extras[extra], extras) for place, extra in EXTRAS.items()}
    any_extra = always.union(*(declared(extras[name], extras) for name in FEATURES))
    packages = packages_distributions()
    missing = set()
    for file in (file for folder in ("gm_discrete", "recipes") for file in (ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        here = next((names for place, names in allowed.items() if name.startswith(place)), always)
        for package, inner in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if package in sys.stdlib_module_names or package in ("gm_discrete", "recipes"):
                continue
            if not {canonicalize_name(one) for one in packages[package]} & (any_extra if inner else here):
                missing.add((name, package))
    assert missing == set()


@pytest.mark.slow
def test_wheel__holds_the_package_and_the_recipes(wheel: Path) -> None:
    names = set(contents(wheel))
    listed = (
        run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        if (ROOT / ".git").exists()
        else ""
    )
    files = [file for file in listed.splitlines() if (ROOT / file).exists()]
    package = {file for file in files if file.startswith("gm_discrete/") and Path(file).suffix in {".py", *DATA}}
    recipes = {f"gm_discrete/_bundled/{file}" for file in files if file.startswith("recipes/")}
    assert package | recipes <= names
    assert {"gm_discrete/py.typed", "gm_discrete/_bundled/recipes/configs/shakespeare.yaml"} <= names
    places = {name.split("/")[0] for name in names}
    assert places == {"gm_discrete", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}  # neither tests nor benchmarks
    assert not [name for name in names if "__pycache__" in name or name.endswith((".ipynb", ".pyc"))]


@pytest.mark.slow
def test_wheel__describes_itself(wheel: Path) -> None:
    files = contents(wheel)
    (metadata,) = (content.decode() for name, content in files.items() if name.endswith(".dist-info/METADATA"))
    (entries,) = (content.decode() for name, content in files.items() if name.endswith("entry_points.txt"))
    assert "gm-discrete = gm_discrete.command:main" in entries
    for line in ("License-Expression: Apache-2.0", "License-File: LICENSE", "Requires-Python: >=3.11"):
        assert f"\n{line}\n" in metadata
    for classifier in (
        "Typing :: Typed",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX :: Linux",
    ):
        assert f"\nClassifier: {classifier}\n" in metadata
    assert "Classifier: License" not in metadata  # PEP 639: the expression takes its place
    description = metadata.partition("\n\n")[2]  # as PyPI shows it, where links to files of the repository are dead
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall("^#.*", description, flags=re.MULTILINE) == re.findall("^#.*", readme, flags=re.MULTILINE)
    assert re.findall("^```.*?^```", description, flags=re.MULTILINE | re.DOTALL) == re.findall(
        "^```.*?^```", readme, flags=re.MULTILINE | re.DOTALL
    )
    assert "[Generator Matching](https://arxiv.org/abs/" in description
    assert [target for target in re.findall(r"\]\(([^)]*)", description) if not target.startswith("https://")] == []
    assert "![" not in description
    assert "links to" not in description


@pytest.mark.slow
def test_sdist__builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    listed = run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / ".git").exists() else []
    here = {file for file in listed if not file.startswith((".ci/", ".github/")) and (ROOT / file).exists()}
    assert here <= {str(file.relative_to(source)) for file in source.rglob("*")}  # what its tests read
    assert (source / "tests/test_package.py").exists()
    build(source, tmp_path / "dist", "--target", "wheel")
    (again,) = (tmp_path / "dist").glob("*.whl")
    assert contents(again) == contents(wheel)


@pytest.mark.slow
def test_wheel__works_outside_of_the_clone(programs: Path, tmp_path: Path) -> None:
    """A copy of the recipes, a training run of two steps, its description, and a sample."""
    run(programs / "gm-discrete", "recipes", "--copy", ".", cwd=tmp_path)
    copied = {file.relative_to(tmp_path) for file in (tmp_path / "recipes").rglob("*") if file.is_file()}
    here = {file.relative_to(ROOT) for file in (ROOT / "recipes").rglob("*") if "__pycache__" not in str(file)}
    assert copied == {file for file in here if (ROOT / file).is_file()}
    assert "--max_eval_sequences" in run(programs / "python", "recipes/text.py", "--help", cwd=tmp_path)
    (tmp_path / "book.txt").write_text("ROMEO: to be, or not to be, that is the question.\n" * 80, encoding="utf-8")
    sizes = {
        "data": "book.txt", "length": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_steps": 2, "warmup_steps": 1, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "num_steps": 4,
        "sample_length": 16, "per_device_train_batch_size": 2, "max_eval_sequences": 4, "num_eval_samples": 2,
        "dataloader_num_workers": 0, "disable_tqdm": True, "use_cpu": True, "output_dir": "run",
    }  # fmt: skip
    options = [part for name, value in sizes.items() for part in (f"--{name}", value)]
    printed = run(programs / "gm-discrete", "train", "shakespeare", "--num_processes", 1, *options, cwd=tmp_path)
    assert "held-out bound" in printed
    assert re.search(
        rf"^accelerate launch --num_processes 1 .* {programs.parent}/\S*/_bundled/recipes/text.py ", printed, re.M
    )
    assert "were not passed to `accelerate launch`" not in printed
    where, described, sample = run(programs / "python", "-c", READS, cwd=tmp_path).split("\n---\n")
    assert Path(where).is_relative_to(programs.parent)
    assert json.loads(described)["path"][0].startswith("MaskedPath(")
    assert sample.startswith("to be")


@pytest.mark.slow
def test_train__an_error_of_the_recipe_is_one_line(programs: Path, tmp_path: Path) -> None:
    command = [str(programs / "gm-discrete"), "train", "shakespeare", "--no_such", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    launch, error = done.stderr.strip().splitlines()
    assert launch.startswith("accelerate launch ")
    assert error.startswith("text.py: error: ")
    assert "--no_such" in error
    assert not list(tmp_path.iterdir())
