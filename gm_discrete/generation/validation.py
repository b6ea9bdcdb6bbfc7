"""Which arguments of `generate` fit each other, the path and the model: looked at together, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.nn.config import GMConfig
from gm_discrete.paths import EuclideanPath, ProductPath
from gm_discrete.samplers import EUCLIDEAN_STEPS, ORDERS, PRODUCT_STEPS, STEPS, check_predictor

TILTED = ("tau_leaping", "ancestral", "euler")
"""Samplers of jumps whose probability the network decides."""


def fitting_samplers(path: Any) -> tuple[str, ...]:
    """The samplers that simulate a path."""
    if isinstance(path, ProductPath):
        return tuple(PRODUCT_STEPS)
    if isinstance(path, EuclideanPath):
        return tuple(EUCLIDEAN_STEPS)
    unfit = {"step_doubling"} if path.rates == "masked" else {"first_hitting", "entropy_bounded"}
    if path.rates not in ("masked", "reversal"):
        unfit.add("ancestral")
    return tuple(name for name in STEPS if name not in unfit)


def check_fit(
    path: Any,
    model: GMConfig,
    config: GMGenerationConfig,
    given: Mapping[str, Any],
    class_labels: Any,
    asked: Mapping[str, Any],
) -> None:
    """
    Args:
        given: the arguments that are of states of one kind, by name.
        asked: arguments that a saved config may hold for other calls, but that are not to be given for nothing.

    Raises:
        ValueError: arguments do not fit; the message names them, and what does.
    """
    samplers = fitting_samplers(path)
    if config.sampler not in samplers:
        raise ValueError(f"sampler={config.sampler!r} does not fit {path!r}; choose one of {', '.join(samplers)}")
    several, numbers = isinstance(path, ProductPath), isinstance(path, EuclideanPath)
    if several:
        fit = {"given", "attention_mask"}
        _refuse(given, given.keys() - fit, "of states with a single field; give what is known as given")
    elif numbers:
        symbols = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "bad_words_ids")}
        of_numbers = {"x_0", "given", "streamer", "stopping_criteria", "output_trajectory"}
        symbols |= {name: value for name, value in {**given, **asked}.items() if name not in {*of_numbers, "guidance"}}
        _refuse(symbols, symbols, "of symbols, and this model is of numbers")
    else:
        _refuse(given, ("given",), "of numbers and of several fields; give symbols as input_ids, with masks to fill")
        _check_ids(path, model, config)
    if config.generators is not None and not several and not numbers:
        raise ValueError("generators are weights of a Euclidean path's superposition; symbols only jump")
    masked = getattr(path, "rates", "") == "masked"
    if not masked and config.order not in (None, "random"):
        others = [name for name in ORDERS if name != "random"]
        raise ValueError(
            f"order={config.order!r} does not fit {path!r}, which has no masks to choose from; of the orders only 'random' "
            f"fits ({', '.join(others)} are of a MaskedPath), with one of the samplers {', '.join(samplers)}"
        )
    if not masked and config.bad_words_ids:
        raise ValueError(
            f"bad_words_ids does not fit {path!r}: its symbols may change until the end, together; a MaskedPath fits, and "
            "allowed_symbols fits any path of symbols"
        )
    guided = config.guidance_scale not in (None, 1.0)
    if guided and class_labels is None:
        raise ValueError(f"guidance_scale={config.guidance_scale} needs class_labels to guide towards")
    if asked.get("guidance") is not None and config.guidance_scale is None:
        raise ValueError(f"guidance={config.guidance!r} says how to guide; give guidance_scale to say how much")
    raw = guided and config.guidance == "raw"
    if raw and (several or numbers):
        raise ValueError("guidance='raw' multiplies rates between symbols, and this model has none; use 'normalized'")
    predictor = given.get("predictor") is not None
    if predictor:
        check_predictor(path)
    if (raw or predictor) and config.sampler not in TILTED:
        raise ValueError(
            f"sampler={config.sampler!r} follows the path's clock, which guided rates leave; choose one of "
            f"{', '.join(name for name in TILTED if name in samplers)}" + (", or guidance='normalized'" if raw else "")
        )
    if (raw or predictor) and config.corrector is not None:
        raise ValueError(
            f"corrector={config.corrector} mends the path's law, which guided rates leave: give one of them"
        )
    if raw and not masked and config.processors(given.get("logits_processor"), given.get("allowed_symbols")):
        raise ValueError(
            f"guidance='raw' on {path!r} knows no logits processors, temperature, top_k, top_p or allowed_symbols, as its "
            "jumps land on noise; guidance='normalized', or a MaskedPath, fits"
        )
    in_blocks = config.block_length or model.block_size
    if in_blocks:
        if not masked or model.time_conditioning or model.image_shape:
            raise ValueError(
                f"block_length={in_blocks} needs a MaskedPath of sequences and time_conditioning=False: blocks that are "
                "done and blocks that are not have no time in common"
            )
        if model.block_size not in (None, in_blocks):
            raise ValueError(f"block_length={in_blocks} differs from block_size={model.block_size} of the model")
        _refuse(given, ("x_0", "predictor"), "not of generation in blocks")
    elif asked.get("eos_token_id") is not None:
        raise ValueError(
            f"eos_token_id={asked['eos_token_id']} ends sequences that are generated in blocks: give block_length"
        )
    if config.use_cache and model.block_size is None:
        raise ValueError(
            "use_cache=True needs a model with a block_size: only block-causal attention leaves keys and values as they are"
        )
    if config.use_cache and guided:
        raise ValueError(
            f"use_cache=True keeps what one network says, and guidance_scale={config.guidance_scale} asks two"
        )


def _check_ids(path: Any, model: GMConfig, config: GMGenerationConfig) -> None:
    """
    Raises:
        ValueError: an id is none of the vocabulary, or the words that are banned leave no symbol.
    """
    banned = [list(words) for words in config.bad_words_ids or []]
    eos = config.eos_token_id
    ids = {
        "eos_token_id": [] if eos is None else [eos] if isinstance(eos, int) else list(eos),
        "pad_token_id": [] if config.pad_token_id is None else [config.pad_token_id],
        "bad_words_ids": [symbol for words in banned for symbol in words],
    }
    for name, symbols in ids.items():
        if not all(isinstance(symbol, int) and 0 <= symbol < path.vocab_size for symbol in symbols):
            raise ValueError(
                f"{name}={getattr(config, name)!r} must hold ids below vocab_size={path.vocab_size}: is this the model's "
                "tokenizer?"
            )
    none = {model.mask_token_id, *path.excluded, *(words[0] for words in banned if len(words) == 1)} - {None}
    if len(none) >= path.vocab_size:
        raise ValueError(f"bad_words_ids={config.bad_words_ids} leaves no symbol of the vocabulary")


def _refuse(given: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    if unfit := [name for name in given if name in set(names) and given[name] is not None]:
        raise ValueError(f"{', '.join(unfit)}: {why}")


def check_allowed(allowed: Any, free: Tensor, vocab_size: int, excluded: Iterable[int]) -> Tensor:
    """`allowed_symbols` as bool [L, K] or [B, L, K], without symbols that no data holds.

    Args:
        free: bool [B, L], what is to be filled.

    Raises:
        ValueError: it has another shape, or leaves a position without a symbol.
    """
    allowed = torch.as_tensor(allowed, device=free.device)
    shapes = (*free.shape[1:], vocab_size), (*free.shape, vocab_size)
    if allowed.dtype != torch.bool or tuple(allowed.shape) not in shapes:
        raise ValueError(
            f"allowed_symbols must be bool [L, K] or [B, L, K] = {list(shapes[1])}; got {allowed.dtype} of shape "
            f"{list(allowed.shape)}"
        )
    allowed = allowed.clone()
    allowed[..., list(excluded)] = False
    if bool((free & ~allowed.any(-1)).any()):
        row, column = (free & ~allowed.any(-1)).nonzero()[0].tolist()
        raise ValueError(
            f"allowed_symbols leaves no symbol at position {column} of sequence {row}, which is to be filled"
        )
    return allowed
