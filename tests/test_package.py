"""The package: what wheel and sdist hold, and that the installed wheel works where there is no clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


@pytest.mark.slow
def test_sdist__builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
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
    assert f"{programs.parent}" in printed.splitlines()[-1] or "accelerate launch --num_processes 1" in printed
    assert "_bundled/recipes/text.py" in printed
    assert "were not passed to `accelerate launch`" not in printed
    where, described, sample = run(programs / "python", "-c", READS, cwd=tmp_path).split("\n---\n")
    assert Path(where).is_relative_to(programs.parent)
    assert json.loads(described)["path"][0].startswith("MaskedPath(")
    assert sample.startswith("to be")


@pytest.mark.slow
def test_train__an_error_of_the_recipe_is_one_line(programs: Path, tmp_path: Path) -> None:
    command = [str(programs / "gm-discrete"), "train", "shakespeare", "--no_such", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    launch, error = done.stderr.strip().splitlines()
    assert launch.startswith("accelerate launch ")
    assert error.startswith("text.py: error: ")
    assert "--no_such" in error
    assert not list(tmp_path.iterdir())
