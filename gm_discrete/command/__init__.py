"""The command `gm-discrete`: train, generate, score, convert and serve from a shell."""

from gm_discrete.command.main import main

__all__ = ["main"]
