"""The README tells the truth: its Python runs, its commands exist, its map is that of the tree."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PROGRAMS = {"accelerate", "cd", "git", "make", "pip", "python", "torchrun"}
OURS = tuple(f"{name}/" for name in ("gm_discrete", "recipes", "benchmarks", "tests"))


def readme() -> str:
    file = ROOT / "README.md"
    assert file.exists(), "README.md is missing: pyproject.toml and every reader expect one"
    return file.read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", readme(), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def file_map() -> dict[str, bool]:
    """Every path of the map → whether it stands as a folder: names are indented below the folder they lie in.

    A line is `name   what it is`, the two at least two spaces apart; it may name several files, `a.py, b.py`.
    """
    maps = [block for block in blocks("") if block.startswith("gm_discrete/")]
    assert len(maps) == 1, "README.md holds one fenced block that starts with gm_discrete/: the file map"
    paths: dict[str, bool] = {}
    parents: list[tuple[int, str]] = []
    for line in maps[0].splitlines():
        if not line.strip():
            continue
        bare = re.sub(r"^[\s│├└─]*", "", line)
        indent = len(line) - len(bare)
        parents = [(depth, path) for depth, path in parents if depth < indent]
        folder = parents[-1][1] if parents else ""
        names = re.split(r"\s{2,}", bare)[0].replace(",", " ").split()
        paths |= {folder + name: name.endswith("/") for name in names}
        if names[-1].endswith("/"):
            parents.append((indent, folder + names[-1]))
    return paths


def test_the_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sources = blocks("python")
    assert sources
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, source in enumerate(sources, start=1):
        exec(compile(source, f"README.md, python block {number}", "exec"), namespace)


def commands() -> list[list[str]]:
    """The words of every command in the README's shell blocks, without comments."""
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ") for line in joined.splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert commands()
    for words in commands():
        program = Path(words[0]).name
        assert program in PROGRAMS, words
        if program == "make":
            assert set(words[1:]) <= targets, words
        for word in words[1:]:
            if word.startswith(OURS):
                assert (ROOT / word).exists(), word
        if "-m" in words:
            module = words[words.index("-m") + 1]
            with contextlib.suppress(ModuleNotFoundError):
                assert importlib.util.find_spec(module), module
                continue
            pytest.fail(f"python -m {module}: there is no such module")


def test_the_commands_use_arguments_that_exist() -> None:
    for words in commands():
        scripts = [word for word in words if word.startswith(OURS) and word.endswith(".py")]
        if scripts:
            source = (ROOT / scripts[0]).read_text()
            for word in words[words.index(scripts[0]) + 1 :]:
                if word.startswith("--") and word not in ("--config", "--output_dir"):
                    name = word.removeprefix("--")
                    assert re.search(rf"\b{name}: |\"{word}\"", source), f"{scripts[0]} {word}"


def test_every_path_of_the_map_exists() -> None:
    paths = file_map()
    assert len(paths) > 10
    for path, is_folder in paths.items():
        found = list(ROOT.glob(path.rstrip("/")))
        assert found, f"{path} is on the map but not in the tree"
        assert all(place.is_dir() == is_folder for place in found), path


def test_the_map_shows_every_module() -> None:
    tree = {
        f"gm_discrete/{place.name}{'/' * place.is_dir()}"
        for place in (ROOT / "gm_discrete").iterdir()
        if (place.is_dir() and (place / "__init__.py").exists()) or (place.suffix == ".py" and place.stem[0] != "_")
    }
    assert tree - file_map().keys() == set()
    assert {"gm_discrete/", "recipes/", "benchmarks/", "tests/"} <= file_map().keys()


def test_modules_named_in_the_text_exist() -> None:
    """Words in backticks that look like paths of this repository."""
    for word in re.findall(r"`([\w./-]+)`", readme()):
        if word.startswith(OURS):
            assert (ROOT / word).exists(), word


def test_pictures_and_local_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", readme()):
        if "://" not in target:
            assert (ROOT / target).exists(), target
