"""From a published checkpoint, or a folder of version 0.1, to a `GMModel` folder; every decision is logged."""

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
    """Settings in the originals' configs that shapes of the weights do not determine; `None` where a config lacks them."""

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
                "config.json of source has causal=true: an autoregressive network does not predict all positions"
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
    """Writes a published checkpoint as a folder that `GMModel.from_pretrained` loads, and returns the model.

    A folder that gm_discrete 0.1 wrote is rewritten in today's form: tables of a path move from config.json into the
    weights, and the generation config gets its new names. (`from_pretrained` loads such folders, too.)

    Args:
        source: a weights file, or a folder with config.json and model.safetensors or pytorch_model.bin. The tokenizer files
            of a folder are copied.
        destination: a new or empty folder.
        family: one of `FAMILIES`; by default that of config.json.
        num_attention_heads: needed if neither config.json nor the weights determine it.
        mask_token_id: for MDLM, if it is neither that of the tokenizer's files nor the last symbol.
        length: at which the model was trained; by default that of config.json, or 1024.
        time_conditioning: for MDLM, whether the time is an input of its network; by default that of config.json, or False.
        eps: ε of the log-linear noise.
        ema: whether to use the averaged weights, if there are any.

    Raises:
        ValueError: the source cannot be read without running code, has an unknown layout, or has no exact counterpart.
        FileNotFoundError: there is no source.
        FileExistsError: the destination is not empty.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"destination={str(destination)!r} is not empty: give a new folder")
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps} must lie between 0 and 1: the log-linear noise ends at κ = eps")
    if _is_ours(Path(source)):
        options = {"family": family, "num_attention_heads": num_attention_heads, "mask_token_id": mask_token_id}
        if given := [f"{name}={value!r}" for name, value in options.items() if value is not None]:
            raise ValueError(f"{', '.join(given)}: source is a gm_discrete folder, whose config.json has all settings")
        model = GMModel.from_pretrained(source)
        _write(model.eval(), destination, Path(source))
        return model
    checkpoint = read(source)
    settings = Settings.of(checkpoint.config)
    family = _family(family, settings.family, checkpoint)
    check(checkpoint.state)
    state = averaged(checkpoint.state, checkpoint.shadow) if ema else checkpoint.state
    path = _path(family, state, mask_token_id, checkpoint)
    # The time is an input of all networks but MDLM's, where it depends on the training.
    if time_conditioning is False and family != "mdlm":
        raise ValueError(f"time_conditioning=False: {family} networks have the time as an input; leave it out")
    timed = (time_conditioning or (time_conditioning is None and bool(settings.time_conditioning))) or family != "mdlm"
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
        time_conditioning=timed,
        noise_range=noise_range,
    )
    logger.info("family: %s; path: %r", family, path)
    logger.info("network input: %s", f"σ̄ = −log κ within {list(noise_range)}" if timed else "no time (σ̄ = 0)")
    logger.info("length: %d%s", config.max_position_embeddings, "" if length or settings.length else ", assumed")
    model = GMModel(config)
    model.load_state_dict({name: tensor.float() for name, tensor in renamed(state).items()})
    _write(model.eval(), destination, checkpoint.folder)
    return model


def _is_ours(source: Path) -> bool:
    """Whether the source is a folder that `GMModel.save_pretrained` wrote."""
    config = source / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == GMConfig.model_type


def _family(given: str | None, configured: str | None, checkpoint: Checkpoint) -> str:
    """
    Raises:
        ValueError: the family is missing or unknown, or its networks have no exact counterpart.
    """
    family = given or configured
    if family is None:
        kind = checkpoint.config.get("model_type")
        found = f"its config.json has model_type={kind!r}" if checkpoint.config else "it has no config.json"
        raise ValueError(
            f"family is missing, and cannot be found in source ({found}); give one of {', '.join(FAMILIES)}"
        )
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {', '.join(FAMILIES)}")
    if given and configured and given != configured:
        logger.warning("family: %s as given, although config.json has %s", given, configured)
    if family == "sedd-uniform":
        raise ValueError(
            "family='sedd-uniform' has no exact counterpart: a score s(y) of uniform noise corresponds to a posterior of "
            "the data only if s(y)/Σs ≥ (1 − κ)/K for every y, which SEDD's network does not ensure; convert a model that "
            "predicts the data, such as Duo"
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
    """The id of the mask in a folder's tokenizer files, which MDLM uses if there is one; else it appends a symbol."""
    files = {} if folder is None else {name: folder / name for name in ("tokenizer_config.json", "tokenizer.json")}
    if not files or not all(file.is_file() for file in files.values()):
        return None
    mask = json.loads(files["tokenizer_config.json"].read_text(encoding="utf-8")).get("mask_token")
    mask = mask.get("content") if isinstance(mask, dict) else mask
    added = json.loads(files["tokenizer.json"].read_text(encoding="utf-8")).get("added_tokens", [])
    return next((int(token["id"]) for token in added if mask is not None and token["content"] == mask), None)


def _write(model: GMModel, destination: Path, folder: Path | None) -> None:
    """Writes model and tokenizer files, first beside the destination, so that it is complete or absent."""
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
