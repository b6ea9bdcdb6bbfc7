"""Which arguments of `generate` fit each other, the path and the model: looked at together, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gm_discrete.models.config import GMConfig
from gm_discrete.models.generation_config import GMGenerationConfig
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
    path: Any, model: GMConfig, config: GMGenerationConfig, given: Mapping[str, Any], class_labels: Any
) -> None:
    """
    Args:
        given: the arguments that are of states of one kind, by name.

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
        symbols = ("input_ids", "logits_processor", "attention_mask", "allowed_symbols", "predictor")
        _refuse(given, symbols, "of symbols, and this model is of numbers")
    else:
        _refuse(given, ("given",), "of numbers and of several fields; give symbols as input_ids, with masks to fill")
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
        raise ValueError("guidance_scale needs class_labels to guide towards")
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
    if config.use_cache and (model.block_size is None or guided):
        raise ValueError(
            "use_cache needs a model with a block_size, as only block-causal attention leaves keys and values as they are, "
            "and no guidance_scale"
        )


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
