"""Loads a model and serves it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_discrete.arguments import check_folder
from gm_discrete.models import GMModel
from gm_discrete.serving.engine import Engine
from gm_discrete.serving.metrics import Metrics
from gm_discrete.serving.planning import Planner
from gm_discrete.serving.settings import Settings
from gm_discrete.serving.vocabulary import Vocabulary

if TYPE_CHECKING:
    from fastapi import FastAPI
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NEEDED = 'serving needs FastAPI and uvicorn: pip install "gm-discrete[serve]"'


def application(
    model: GMModel, tokenizer: PreTrainedTokenizerBase, settings: Settings | None = None, name: str = "gm_discrete"
) -> FastAPI:
    """The web application of a model, for a server of yours: any that runs ASGI applications, with one process.

    Args:
        tokenizer: of the model.
        settings: limits; host and port do not matter here, but for the check of names without a key.
        name: of the model, as clients ask for it.

    Raises:
        ImportError: FastAPI is not installed.
        ValueError: the model is not one of token sequences, or has another tokenizer.
    """
    try:
        from gm_discrete.serving.app import create_app
    except ImportError as error:
        raise ImportError(f"{NEEDED} ({error})") from error
    settings = Settings() if settings is None else settings
    if model.path.state_name != "input_ids" or model.config.image_shape:
        raise ValueError(f"this model has the path {model.path!r}: only models of token sequences can be served")
    metrics = Metrics()
    planner = Planner(model.eval(), Vocabulary(model, tokenizer), settings)
    engine = Engine(model, settings.max_batch, settings.max_queue, metrics)
    return create_app(engine, planner, settings, metrics, name)


def serve(
    model_folder: str | os.PathLike[str],
    settings: Settings | None = None,
    name: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    log_level: str = "info",
) -> None:
    """Serves the model of a folder until SIGINT or SIGTERM, after which running requests are finished.

    Args:
        model_folder: with a model and its tokenizer, as `save_pretrained` writes them, or a name on the hub.
        settings: address and limits.
        name: of the model, as clients ask for it; by default that of the folder.
        device: such as "cuda"; by default the first GPU, or else the CPU.
        dtype: of the weights, such as "bfloat16"; by default that of the files.
        log_level: of uvicorn.

    Raises:
        ImportError: FastAPI or uvicorn is not installed.
        FileNotFoundError: there is no such folder.
        ValueError: an argument is out of its range, or the model is not one of token sequences.
    """
    check_folder(os.fspath(model_folder))
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError(f"{NEEDED} ({error})") from error
    import torch
    from transformers import AutoTokenizer

    from gm_discrete.serving.listener import Listener

    settings = Settings() if settings is None else settings
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)  # as it is, without tokens that the model does not have
    model: Any = GMModel.from_pretrained(model_folder, **({} if dtype is None else {"dtype": dtype}))
    name = name or Path(model_folder).resolve().name
    app = application(model.to(device), tokenizer, settings, name)
    if not settings.is_local and settings.api_key is None:
        logger.warning(
            "host=%s is reached from outside, and there is no api_key: everybody can use the model", settings.host
        )
    patience = int(settings.timeout) + 1  # seconds that running requests have at the end
    config = uvicorn.Config(
        app, settings.host, settings.port, log_level=log_level, server_header=False, timeout_graceful_shutdown=patience
    )
    Listener(config, settings.timeout).run()
