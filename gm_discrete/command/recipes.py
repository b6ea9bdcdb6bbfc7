"""`gm-discrete recipes`: the recipes and configs of the package."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

CONFIGS_OF_DATA = {
    **dict.fromkeys((".csv", ".tsv", ".parquet", ".json", ".jsonl"), "table"),
    **dict.fromkeys((".txt", ".md"), "shakespeare"),
}
"""Suffix of a file of data → the config that trains on such files."""
PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The folder `recipes`: in an installed package a part of it, in a clone beside the package.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (PACKAGE / "_bundled" / "recipes", PACKAGE.parent / "recipes"):
        if (folder / "configs").is_dir():
            return folder
    raise FileNotFoundError(f"the recipes are missing beside {PACKAGE}; install gm_discrete again")


def configs() -> dict[str, Path]:
    """The configs of the package, by name."""
    return {file.stem: file for file in sorted((root() / "configs").glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A config by its name, or a YAML file.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is a file of data.
    """
    found = configs()
    if config := CONFIGS_OF_DATA.get(Path(name).suffix.lower()):
        raise ValueError(
            f"CONFIG {name!r} is a file of data; give gm-discrete train {config} --data {shlex.quote(name)}"
        )
    if Path(name).is_file():
        return Path(name)
    if name in found:
        return found[name]
    from gm_discrete.renamed import nearest

    raise FileNotFoundError(
        f"CONFIG {name!r} is neither a file nor the name of a config{nearest(name, found)}; gm-discrete recipes lists them, "
        "and gm-discrete train table --data FILE trains on a table of your own"
    )


def recipe_of(config: Path) -> Path:
    """The recipe that a config is for, by its key `recipe`.

    Raises:
        ValueError: the file is no mapping in YAML, or names no recipe.
    """
    import yaml

    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"CONFIG {str(config)!r} is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"CONFIG {str(config)!r} holds no settings; write lines such as `length: 256`")
    known = sorted(file.stem for file in root().glob("*.py") if "parse_arguments(" in file.read_text(encoding="utf-8"))
    known.remove("common")
    if settings.get("recipe") not in known:
        given = f"names the recipe {settings['recipe']!r}" if "recipe" in settings else "does not name its recipe"
        raise ValueError(
            f"CONFIG {str(config)!r} {given}; write `recipe: text` in it, or another of {', '.join(known)}"
        )
    return root() / f"{settings['recipe']}.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the configs that come with the package, each with its first line; or copy the recipes and their configs to a "
        "folder, to change them there."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--list", action="store_true", help="list the configs; done without an option, too")
    choice.add_argument("--copy", metavar="DIR", help="write recipes/ to a folder that has none, to be changed there")


def run(options: argparse.Namespace) -> None:
    if options.copy is None:
        width = max(map(len, configs()))
        for name, file in configs().items():
            first = file.read_text(encoding="utf-8").partition("\n")[0].strip("#: ")
            print(f"{name:{width}}  {first}")
        return
    target = Path(options.copy) / "recipes"
    if target.exists():
        raise FileExistsError(f"--copy: {str(target)!r} exists already, and is not overwritten; give another folder")
    shutil.copytree(root(), target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    print(f"written to {target}; a run of it is: accelerate launch {target / 'text.py'} --config FILE.yaml")
