"""What `test_configs.py` starts: a program of the command line, as `python SCRIPT …` or `python -m MODULE …` would."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def main(folder: Path, *command: str) -> None:
    """Runs the program in the folder."""
    os.chdir(folder)
    if command[0] == "-m":
        sys.argv = list(command[1:])
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
