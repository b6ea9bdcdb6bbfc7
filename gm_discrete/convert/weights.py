"""The DiT's parameters: their names and shapes in the originals, and their names here."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from gm_discrete.convert.reading import ROOT
from gm_discrete.nn.dit import NOISE_FEATURES

logger = logging.getLogger(__name__)

FREQUENCIES = "rotary_emb.inv_freq"
"""A buffer of the originals: θ^(−2i/d) of a head with d channels."""

ROPE_THETA = 10000.0


def expected_shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a DiT of this vocabulary, width and depth, in the order of its definition."""
    embedding, condition = state[ROOT], state.get("sigma_map.mlp.2.bias")
    vocabulary, width = embedding.shape if embedding.dim() == 2 else (0, 0)
    size = len(condition) if condition is not None and condition.dim() == 1 else 0
    inner = state.get("blocks.0.mlp.0.bias")
    hidden = len(inner) if inner is not None and inner.dim() == 1 else 4 * width
    depth = len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
    block = {
        "norm1.weight": (width,),
        "attn_qkv.weight": (3 * width, width),
        "attn_out.weight": (width, width),
        "norm2.weight": (width,),
        "mlp.0.weight": (hidden, width),
        "mlp.0.bias": (hidden,),
        "mlp.2.weight": (width, hidden),
        "mlp.2.bias": (width,),
        "adaLN_modulation.weight": (6 * width, size),
        "adaLN_modulation.bias": (6 * width,),
    }
    return {
        ROOT: (vocabulary, width),
        "sigma_map.mlp.0.weight": (size, NOISE_FEATURES),
        "sigma_map.mlp.0.bias": (size,),
        "sigma_map.mlp.2.weight": (size, size),
        "sigma_map.mlp.2.bias": (size,),
        **{f"blocks.{i}.{name}": shape for i in range(max(depth, 1)) for name, shape in block.items()},
        "output_layer.norm_final.weight": (width,),
        "output_layer.linear.weight": (vocabulary, width),
        "output_layer.linear.bias": (vocabulary,),
        "output_layer.adaLN_modulation.weight": (2 * width, size),
        "output_layer.adaLN_modulation.bias": (2 * width,),
    }


def check(state: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: a parameter is missing or unexpected, or has another shape.
    """
    expected = expected_shapes(state)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected and name != FREQUENCIES]
    if missing or unexpected:
        raise ValueError(
            f"source is no DiT of MDLM, SEDD or Duo: missing {', '.join(missing) or 'nothing'}; "
            f"unexpected {', '.join(unexpected) or 'nothing'}"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{name} of source has shape {tuple(state[name].shape)}; expected {shape}")


def check_values(state: Mapping[str, Tensor]) -> None:
    """
    Raises:
        ValueError: a parameter holds NaN or infinity, or integers in place of numbers.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} of source is of {tensor.dtype}: quantized weights cannot be converted")
        if wrong := int((~tensor.isfinite()).sum()):
            raise ValueError(f"{name} of source holds NaN or infinity in {wrong} of {tensor.numel()} values")


def averaged(state: dict[str, Tensor], shadow: list[Tensor] | None) -> dict[str, Tensor]:
    """The averaged weights if there are any, else the last ones.

    An average has no names, and is in the order of the network's parameters. It is used if that order is certain: the
    tensors of the state have it, and the average has as many, each of the right shape.
    """
    if not shadow:
        logger.info("weights: the last ones; the checkpoint has no average (EMA)")
        return state
    expected = expected_shapes(state)
    shapes = [tuple(tensor.shape) if isinstance(tensor, Tensor) else None for tensor in shadow]
    in_order = [name for name in state if name != FREQUENCIES] == list(expected)
    if not in_order or shapes != list(expected.values()):
        logger.warning(
            "weights: the last ones; the average (EMA) cannot be matched with the parameters by order and shape"
        )
        return state
    logger.info("weights: the average (EMA) of training")
    return dict(zip(expected, shadow, strict=True))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters under the names of a `GMModel` whose backbone is a `DiT`.

    A block's modulation, 6D rows of (shift, scale, gate) of attention and (shift, scale, gate) of the feed-forward network,
    is cut in two: the last feed-forward network runs separately, only at the positions that a loss or sampler needs.
    """
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    plain = {
        ROOT: "embed_tokens.weight",
        "sigma_map.mlp.0": "noise.inner",
        "sigma_map.mlp.2": "noise.outer",
        "output_layer.norm_final": "norm.norm",
        "output_layer.adaLN_modulation": "norm.modulation",
    }
    halves: dict[str, tuple[str, str]] = {}
    for i in range(depth):
        attention, feed_forward = f"layers.{i}", f"layers.{i}.feed_forward" if i < depth - 1 else f"layers.{depth}"
        plain |= {
            f"blocks.{i}.norm1": f"{attention}.norm.norm",
            f"blocks.{i}.attn_qkv": f"{attention}.attention.qkv",
            f"blocks.{i}.attn_out": f"{attention}.attention.output",
            f"blocks.{i}.norm2": f"{feed_forward}.norm.norm",
            f"blocks.{i}.mlp.0": f"{feed_forward}.input",
            f"blocks.{i}.mlp.2": f"{feed_forward}.output",
        }
        halves[f"blocks.{i}.adaLN_modulation"] = f"{attention}.norm.modulation", f"{feed_forward}.norm.modulation"
    result = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name == FREQUENCIES:  # computed anew
            continue
        if module == "output_layer.linear":
            result[f"heads.tokens.{kind}"] = tensor
        elif module in halves:
            for target, half in zip(halves[module], tensor.chunk(2), strict=True):
                result[f"backbone.{target}.{kind}"] = half
        else:
            result[f"backbone.{plain[name] if name in plain else f'{plain[module]}.{kind}'}"] = tensor
    return result


def heads(state: dict[str, Tensor], given: int | None, configured: int | None) -> int:
    """The number of attention heads, which the shapes of the parameters do not determine.

    Args:
        given: by the user.
        configured: in the config. The buffer of frequencies, if there is one, must agree.

    Raises:
        ValueError: no source has the number, two sources disagree, or the rotary frequencies are unknown ones.
    """
    width, frequencies = state[ROOT].shape[1], state.get(FREQUENCIES)
    sources = {"num_attention_heads": given, "the config": configured}
    if frequencies is not None:
        sources[FREQUENCIES] = width // max(1, 2 * len(frequencies))
        exponent = torch.arange(len(frequencies)) / len(frequencies)
        if not torch.allclose(frequencies.float(), ROPE_THETA**-exponent, rtol=1e-2):  # in bfloat16 they err by 2⁻⁸
            raise ValueError(f"{FREQUENCIES} of source is not {ROPE_THETA:g}^(−2i/d), which every known DiT has")
    numbers = {name: number for name, number in sources.items() if number is not None}
    if not numbers:
        raise ValueError(f"num_attention_heads is missing: source has it neither in a config nor as {FREQUENCIES}")
    if len(set(numbers.values())) > 1:
        disagreement = ", ".join(f"{number} by {name}" for name, number in numbers.items())
        raise ValueError(f"num_attention_heads is not clear: {disagreement}")
    number = next(iter(numbers.values()))
    if number < 1 or width % (2 * number):
        raise ValueError(
            f"num_attention_heads={number} must divide the width {width} of source into heads of an even size"
        )
    return number
