"""From a published checkpoint to a `GMModel` folder; what is decided on the way is logged."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gm_discrete.convert.reading import ROOT, Checkpoint, read
from gm_discrete.convert.weights import ROPE_THETA, averaged, check, heads, renamed
from gm_discrete.models import GMConfig, GMModel
from gm_discrete.paths import FinitePath, MaskedPath, UniformPath

logger = logging.getLogger(__name__)

FAMILIES = ("mdlm", "sedd-absorb", "sedd-uniform", "duo")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the originals' configs tell beside the shapes of the weights; `None` where they do not."""

    family: str | None = None
    num_attention_heads: int | None = None
    length: int | None = None
    dropout: float = 0.0
    time_conditioning: bool | None = None
    noise_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, config: dict[str, Any]) -> Settings:
        """
        Args:
            config: SEDD's, nested (`graph`, `noise`, `model`), or the flat one of MDLM's and Duo's folders.

        Raises:
            ValueError: it is that of another kind of model.
        """
        if not config:
            return cls()
        if "graph" in config:
            network, noise = config.get("model", {}), config.get("noise", {})
            geometric = noise.get("type") == "geometric"  # σ̄ = σ_min^(1−τ) σ_max^τ
            return cls(
                family=f"sedd-{config['graph'].get('type')}",
                num_attention_heads=network.get("n_heads"),
                length=network.get("length"),
                dropout=network.get("dropout", 0.0),
                noise_range=(float(noise["sigma_min"]), float(noise["sigma_max"])) if geometric else None,
            )
        if config.get("causal"):
            raise ValueError(
                "config.json of source says causal: an autoregressive network states no belief about all positions"
            )
        name = str(config.get("model_type", "")).lower()
        return cls(
            family=name if name in FAMILIES else None,
            num_attention_heads=config.get("n_heads"),
            length=config.get("model_length"),
            dropout=config.get("dropout", 0.0),
            time_conditioning=config.get("time_conditioning"),
        )


def convert(
    source: str | Path,
    destination: str | Path,
    family: str | None = None,
    *,
    num_attention_heads: int | None = None,
    mask_token_id: int | None = None,
    length: int | None = None,
    time_conditioning: bool | None = None,
    eps: float = 1e-3,
    ema: bool = True,
) -> GMModel:
    """Writes a published checkpoint as a folder that `GMModel.from_pretrained` reads, and returns the model.

    Args:
        source: a weights file, or a folder with config.json and model.safetensors or pytorch_model.bin. The tokenizer files
            of a folder are copied.
        destination: a new or empty folder.
        family: one of `FAMILIES`; by default what config.json says.
        num_attention_heads: where neither config.json nor the weights tell it.
        mask_token_id: of MDLM, where it is not that of the tokenizer's files, or the last symbol.
        length: at which the model was trained; by default that of config.json, or 1024.
        time_conditioning: of MDLM: whether its network was told the time; by default what config.json says, or not.
        eps: ε of the log-linear noise.
        ema: whether to take the averaged weights where there are any.

    Raises:
        ValueError: the source cannot be read without running code, is of no known layout, or has no exact counterpart.
        FileNotFoundError: there is no source. FileExistsError: there is something at the destination.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"destination={str(destination)!r} is not empty: give a new folder")
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps} must lie between 0 and 1: the log-linear noise ends at κ = eps")
    checkpoint = read(source)
    settings = Settings.of(checkpoint.config)
    family = _family(family, settings.family, checkpoint)
    check(checkpoint.state)
    state = averaged(checkpoint.state, checkpoint.shadow) if ema else checkpoint.state
    path = _path(family, state, mask_token_id, checkpoint)
    # MDLM's network is told the time only if it was trained so; the others always are.
    if time_conditioning is False and family != "mdlm":
        raise ValueError(f"time_conditioning=False: {family} networks are told the time; leave it out")
    told = (time_conditioning or (time_conditioning is None and bool(settings.time_conditioning))) or family != "mdlm"
    noise_range = settings.noise_range or (0.0, -math.log(eps))
    config = GMConfig(
        path=path,
        backbone="dit",
        hidden_size=state[ROOT].shape[1],
        intermediate_size=len(state["blocks.0.mlp.0.bias"]),
        num_hidden_layers=sum(name.endswith("attn_qkv.weight") for name in state),
        num_attention_heads=heads(checkpoint.state, num_attention_heads, settings.num_attention_heads),
        condition_size=len(state["sigma_map.mlp.0.bias"]),
        max_position_embeddings=length or settings.length or 1024,
        rope_theta=ROPE_THETA,
        hidden_dropout=settings.dropout,
        time_conditioning=told,
        noise_range=noise_range,
    )
    logger.info("family: %s; path: %r", family, path)
    logger.info("network is told: %s", f"σ̄ = −log κ within {list(noise_range)}" if told else "no time (σ̄ = 0)")
    logger.info("length: %d%s", config.max_position_embeddings, "" if length or settings.length else ", assumed")
    model = GMModel(config)
    model.load_state_dict({name: tensor.float() for name, tensor in renamed(state).items()})
    _write(model.eval(), destination, checkpoint.folder)
    return model


def _family(given: str | None, known: str | None, checkpoint: Checkpoint) -> str:
    """
    Raises:
        ValueError: nobody tells the family, it is unknown, or its networks state no belief.
    """
    family = given or known
    if family is None:
        kind = checkpoint.config.get("model_type")
        found = f"its config.json has model_type={kind!r}" if checkpoint.config else "it has no config.json"
        raise ValueError(f"family is missing: source does not tell it ({found}); give one of {', '.join(FAMILIES)}")
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {', '.join(FAMILIES)}")
    if given and known and given != known:
        logger.warning("family: %s as given, although config.json says %s", given, known)
    if family == "sedd-uniform":
        raise ValueError(
            "family='sedd-uniform' has no exact counterpart: a score s(y) of uniform noise stems from a belief about the "
            "data only if s(y)/Σs ≥ (1 − κ)/K for every y, and SEDD's network is free to break that; convert a model that "
            "states a belief, such as Duo"
        )
    return family


def _path(family: str, state: dict[str, Tensor], mask_token_id: int | None, checkpoint: Checkpoint) -> FinitePath:
    """The path on the K symbols of the network's embedding, with κ = t."""
    vocab_size = len(state[ROOT])
    if family != "mdlm" and mask_token_id is not None:
        raise ValueError(
            f"mask_token_id={mask_token_id} is MDLM's: that of SEDD is the last symbol, and Duo has no mask"
        )
    if family == "duo":
        return UniformPath(vocab_size)
    if family == "mdlm" and mask_token_id is None:
        mask_token_id = _mask_of_tokenizer(checkpoint.folder)
    return MaskedPath(vocab_size, mask_token_id)


def _mask_of_tokenizer(folder: Path | None) -> int | None:
    """The id of the mask in a folder's tokenizer files, which MDLM takes where there is one; else it appends a symbol."""
    files = {} if folder is None else {name: folder / name for name in ("tokenizer_config.json", "tokenizer.json")}
    if not files or not all(file.is_file() for file in files.values()):
        return None
    mask = json.loads(files["tokenizer_config.json"].read_text()).get("mask_token")
    mask = mask.get("content") if isinstance(mask, dict) else mask
    added = json.loads(files["tokenizer.json"].read_text()).get("added_tokens", [])
    return next((int(token["id"]) for token in added if mask is not None and token["content"] == mask), None)


def _write(model: GMModel, destination: Path, folder: Path | None) -> None:
    """Model and tokenizer files, first beside the destination, so that it is whole or not there."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as work:
        ready = Path(work) / "model"
        model.save_pretrained(ready)
        copied = [name for name in TOKENIZER_FILES if folder is not None and (folder / name).is_file()]
        for name in copied:
            shutil.copyfile(folder / name, ready / name)  # pyright: ignore[reportOptionalOperand]
        logger.info(
            "tokenizer: %s", ", ".join(copied) or "none beside the weights; save the one it was trained with here"
        )
        ready.replace(destination)
    logger.info("written: %s", destination)
