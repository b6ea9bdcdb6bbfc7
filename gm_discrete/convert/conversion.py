"""From a published checkpoint, or a folder of version 0.1, to a `GMModel` folder; every decision is logged."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from gm_discrete.convert.destination import checked, written
from gm_discrete.convert.language_conversion import convert_language, language_of
from gm_discrete.convert.languages import LANGUAGES
from gm_discrete.convert.reading import ROOT, Checkpoint, read
from gm_discrete.convert.settings import FAMILIES, Settings, positive
from gm_discrete.convert.sources import WEIGHTS, Folder, line, opened, read_settings
from gm_discrete.convert.tokenizers import KeptTokenizer, copy_tokenizer
from gm_discrete.convert.weights import ROPE_THETA, averaged, check, check_values, heads, renamed
from gm_discrete.models import GMConfig, GMModel
from gm_discrete.paths import FinitePath, MaskedPath, UniformPath

logger = logging.getLogger(__name__)


def convert(
    source: str | Path,
    destination: str | Path,
    family: str | None = None,
    *,
    num_attention_heads: int | None = None,
    mask_token_id: int | None = None,
    length: int | None = None,
    time_conditioning: bool | None = None,
    eps: float | None = None,
    ema: bool = True,
    block_size: int | None = None,
) -> Path:
    """Writes a published checkpoint as a folder that `GMModel.from_pretrained` loads, and returns that folder.

    The weights of LLaDA, Dream and SDAR are copied in their type, a piece of one tensor at a time; those of the other
    families are loaded, and written in float32.

    A folder that gm_discrete 0.1 wrote is rewritten in today's form: tables of a path move from config.json into the
    weights, and the generation config gets its new names. (`from_pretrained` loads such folders, too.)

    Args:
        source: a weights file (safetensors, or of `torch.save`: also a Lightning checkpoint); a folder with config.json and
            model.safetensors or pytorch_model.bin, whole or in shards; the folder of a training run of SEDD, MDLM or Duo; or
            the id of a model on the Hugging Face hub. Tokenizer files are copied.
        destination: a new or empty folder.
        family: one of `FAMILIES` or `LANGUAGES`; by default that of config.json.
        num_attention_heads: needed if neither config.json nor the weights determine it.
        mask_token_id: for MDLM, if it is neither that of the tokenizer's files nor the last symbol; for LLaDA, Dream and
            SDAR, if it is neither that of config.json nor that of the tokenizer's files.
        length: at which the model was trained; by default that of config.json, or 1024; for LLaDA and SDAR at most 4096, and
            for Dream 2048, where config.json has that of the autoregressive model.
        time_conditioning: for MDLM, whether the time is an input of its network; by default that of config.json, or False.
        eps: ε of the log-linear noise, in place of the range of noise in the config; 0.001 by default.
        ema: whether to use the averaged weights, if there are any.
        block_size: for SDAR, if config.json does not have it.

    Raises:
        ValueError: the source is damaged, has an unknown layout or no exact counterpart, holds NaN, or has a link that
            leads out of it.
        FileNotFoundError: there is no source, or a shard of it is missing.
        FileExistsError: the destination is not empty.
    """
    destination = checked(destination)
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"eps={eps} must lie between 0 and 1: the log-linear noise ends at κ = eps")
    for name, number in (("num_attention_heads", num_attention_heads), ("length", length), ("block_size", block_size)):
        positive(name, number)
    found = opened(source)
    of_dit = {"num_attention_heads": num_attention_heads, "time_conditioning": time_conditioning, "eps": eps}
    if isinstance(found, Folder) and _is_ours(found):
        common = {"family": family, "mask_token_id": mask_token_id, "length": length, "block_size": block_size}
        _refuse({**common, **of_dit}, "source is a gm_discrete folder, whose config.json has all settings")
        _write(_ours(found).eval(), destination, Checkpoint({}, folder=found))
        return destination
    if (language := language_of(found, family)) is not None:
        if not isinstance(found, Folder):
            raise ValueError(f"source={str(source)!r} is a file; {language} is read from a folder with its config.json")
        _refuse({**of_dit, "ema": None if ema else False}, f"{language} checkpoints have no such setting")
        convert_language(found, destination, language, mask_token_id, length, block_size)
        return destination
    _refuse({"block_size": block_size}, "only SDAR models have blocks")
    if isinstance(found, Folder) and (config := found.config()):
        _family(family, Settings.of(config))  # before large files are read
    checkpoint = read(found)
    model = _dit(checkpoint, family, num_attention_heads, mask_token_id, length, time_conditioning, eps, ema)
    _write(model.eval(), destination, checkpoint)
    return destination


def _dit(
    checkpoint: Checkpoint,
    family: str | None,
    num_attention_heads: int | None,
    mask_token_id: int | None,
    length: int | None,
    time_conditioning: bool | None,
    eps: float | None,
    ema: bool,
) -> GMModel:
    """The model of a checkpoint of MDLM, SEDD or Duo; see `convert` for the arguments."""
    settings = Settings.of(checkpoint.config)
    family = _family(family, settings)
    check(checkpoint.state)
    state = averaged(checkpoint.state, checkpoint.shadow) if ema else checkpoint.state
    check_values(state)
    path = _path(family, state, mask_token_id, checkpoint)
    # The time is an input of all networks but MDLM's, where it depends on the training.
    if time_conditioning is False and family != "mdlm":
        raise ValueError(f"time_conditioning=False: {family} networks have the time as an input; leave it out")
    timed = (time_conditioning or (time_conditioning is None and bool(settings.time_conditioning))) or family != "mdlm"
    noise_range = (None if eps is not None else settings.noise_range) or (0.0, -math.log(eps or 1e-3))
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
    if family == "duo":
        model.generation_config.grid = "linear"  # the even steps of its published sampler; ours would be quadratic
        logger.info("generation: grid='linear', as in Duo's sampler")
    return model


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """
    Raises:
        ValueError: one of the options is given.
    """
    if given := [f"{name}={value!r}" for name, value in options.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: {reason}; leave it out")


def _is_ours(source: Folder) -> bool:
    """Whether the source is a folder that `GMModel.save_pretrained` wrote."""
    config = source.file("config.json")
    return config is not None and read_settings(config).get("model_type") == GMConfig.model_type


def _ours(source: Folder) -> GMModel:
    """The model of a folder that `GMModel.save_pretrained` wrote.

    Raises:
        ValueError: its files are damaged, or hold NaN.
    """
    for name in ("generation_config.json", *WEIGHTS[:4]):
        source.file(name)  # refuses links that lead out of the folder
    try:
        model, report = GMModel.from_pretrained(source.path, output_loading_info=True)
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"source={str(source.path)!r} is damaged: {line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"source={str(source.path)!r} is damaged: its weights lack {', '.join(missing)}")
    check_values(dict(model.named_parameters()))
    return model


def _family(given: str | None, settings: Settings) -> str:
    """
    Raises:
        ValueError: the family is missing or unknown, or its networks have no exact counterpart.
    """
    configured, family = settings.family, given or settings.family
    if family is None:
        raise ValueError(
            f"family is missing, and cannot be found in source ({settings.kind}); give one of "
            f"{', '.join((*FAMILIES, *LANGUAGES))}"
        )
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {', '.join((*FAMILIES, *LANGUAGES))}")
    if given and configured and given != configured:
        logger.warning("family: %s as given, although the config of source has %s", given, configured)
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
    tokenizer = checkpoint.tokenizer  # in MDLM's and Duo's code, also for SEDD
    if tokenizer is None and checkpoint.folder is not None and family == "mdlm":
        tokenizer = KeptTokenizer.of_folder(checkpoint.folder)
    if (
        mask_token_id is None and tokenizer is not None
    ):  # MDLM uses the tokenizer's if there is one, else appends a symbol
        mask_token_id = tokenizer.mask_token_id()
    return MaskedPath(vocab_size, mask_token_id)


def _write(model: GMModel, destination: Path, checkpoint: Checkpoint) -> None:
    """Writes model and tokenizer files."""
    with written(destination) as ready:
        model.save_pretrained(ready)
        copied = [] if checkpoint.folder is None else copy_tokenizer(checkpoint.folder, ready)
        if not copied and checkpoint.tokenizer is not None:
            copied = checkpoint.tokenizer.write(ready)
        logger.info(
            "tokenizer: %s", ", ".join(copied) or "none beside the weights; save the one it was trained with here"
        )
