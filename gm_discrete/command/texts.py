"""How the command writes help and errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

TRACEBACK = "GM_DISCRETE_TRACEBACK"
"""Environment variable with which recipes print tracebacks in place of errors of one line."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help describes the options\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: …)" to options that have a default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == {}:
            return action.help
        return super()._get_help_string(action)


def one_line(error: BaseException) -> str:
    """The message of an error and its notes, without line breaks."""
    return ". ".join(" ".join(part.split()).rstrip(".") for part in (str(error), *getattr(error, "__notes__", ())))


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)
