"""A server with the API of OpenAI for models of tokens: `gm-discrete serve FOLDER`.

It needs FastAPI and uvicorn, `pip install "gm-discrete[serve]"`, which are imported when a server starts. `serve` and
`application` load the rest of the library on first access.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gm_discrete.serving.settings import Settings

if TYPE_CHECKING:
    from gm_discrete.serving.server import application, serve

__all__ = ["Settings", "application", "serve"]


if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(import_module("gm_discrete.serving.server"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
