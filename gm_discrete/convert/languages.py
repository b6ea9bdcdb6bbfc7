"""LLaDA, Dream and SDAR: masked diffusion models of text, whose networks are those of Llama, Qwen2 and Qwen3.

Their layouts, after the published code; all three have RMS normalisation, rotary positions on halves of a head, and a gated
feed-forward network, which are computed as in transformers:

- **LLaDA** 8B and 1.5 (arXiv 2502.09992, 2505.19223; `modeling_llada.py`): attention in both directions, a prediction read
  at its own position. The names of parameters and settings are those of OLMo. What OLMo can do and these models do not
  (ALiBi, other norms, activations and blocks, biases, scaled logits) is refused.
- **Dream** 7B (arXiv 2508.15487; `modeling_dream.py`, `generation_utils.py`), also Dream-Coder and DiffuCoder: Qwen2 with
  attention in both directions; the prediction of a position is read at the one before it.
- **SDAR** (arXiv 2510.06303; `modeling_sdar.py`, `generate.py`): Qwen3 as a block diffusion model, without that shift.

All were trained with the masks of κ = t, at times that the network does not get. Here the mask itself has no probability in
a prediction; the originals take the softmax with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gm_discrete.generation.blocks import Blocks
from gm_discrete.samplers import TauLeaping

Config = Mapping[str, Any]

BOOKKEEPING = {
    "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache",
    "return_dict", "output_attentions", "output_hidden_states", "id2label", "label2id", "initializer_range", "bos_token_id",
    "eos_token_id", "pad_token_id", "mask_token_id", "tie_word_embeddings", "attn_implementation", "attention_dropout",
}  # fmt: skip
"""Settings that every family may have, and that are used elsewhere or do not change what a network computes."""


@dataclass(frozen=True)
class Language:
    """The layout of a family of published models.

    Attributes:
        architecture: class of its models, where config.json names one.
        needed: settings without which the network is not determined.
        fixed: settings that have only these values here; a setting that is missing has the first.
        unused: settings that do not change what the network computes.
        names: patterns of names of parameters, and what they become.
        backbone: the dict of the config of transformers.
        length: of training, if the config is not to say it.
        end_of_turn: a token that ends an answer, beside the end of text.
        generation: the options of the published example, for blocks of that size.
    """

    architecture: str
    needed: tuple[str, ...]
    fixed: Mapping[str, tuple[object, ...]]
    unused: frozenset[str]
    names: Mapping[str, str]
    backbone: Callable[[Config], dict[str, Any]]
    length: int
    end_of_turn: str
    generation: Callable[[int], dict[str, Any]]
    shift: bool = False
    has_blocks: bool = False

    def check(self, config: Config) -> None:
        """
        Raises:
            ValueError: the config lacks a setting, or has one that is not implemented.
        """
        found = config.get("architectures") or [self.architecture]
        if found != [self.architecture]:
            raise ValueError(f"config.json has architectures={found}; expected {[self.architecture]}")
        if missing := [name for name in self.needed if config.get(name) is None]:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        for name, allowed in self.fixed.items():
            if config.get(name, allowed[0]) not in allowed:
                raise ValueError(
                    f"config.json has {name}={config[name]!r}, which is not implemented; only {allowed[0]!r} is"
                )
        known = {*self.needed, *self.fixed, *self.unused, *BOOKKEEPING}
        for name, value in config.items():
            if name not in known and value:
                raise ValueError(
                    f"config.json has {name}={value!r}, which is unknown here; delete it there if it does not change what "
                    "the network computes"
                )

    def renamed(self, name: str) -> str | None:
        """The name of a parameter in a `GMModel`; `None` for one that the family does not have."""
        for pattern, target in self.names.items():
            if match := re.fullmatch(pattern, name):
                return match.expand(target)
        return None


def rope(config: Config) -> dict[str, Any]:
    """The rotary positions: their base stands by itself, or since transformers 5 among `rope_parameters`.

    Raises:
        ValueError: the config has none, or scaled ones.
    """
    parameters = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    theta, kind = parameters.get("rope_theta"), parameters.get("rope_type", "default")
    if kind != "default":
        raise ValueError(f"config.json has rope_parameters={parameters!r}; only rope_type='default' is implemented")
    if not isinstance(theta, int | float):
        raise ValueError(f"config.json has rope_theta={theta!r}; expected a number")
    return {"rope_type": "default", "rope_theta": float(theta)}


def rows(config: Config) -> int:
    """The number of rows of the embedding."""
    return config.get("embedding_size") or config["vocab_size"]


def is_tied(config: Config) -> bool:
    """Whether head and embedding share their weights."""
    return bool(config.get("weight_tying", config.get("tie_word_embeddings", False)))


def llama(config: Config) -> dict[str, Any]:
    """The network of LLaDA as a Llama."""
    heads, groups = config["n_heads"], config.get("n_kv_heads")
    if config.get("multi_query_attention") is not None:
        queries = 1 if config["multi_query_attention"] else heads
        if groups not in (None, queries):
            raise ValueError(f"config.json has n_kv_heads={groups} and multi_query_attention={queries == 1}")
        groups = queries
    return {
        "model_type": "llama",
        "hidden_size": config["d_model"],
        "intermediate_size": config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * config["d_model"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": groups or heads,
        "max_position_embeddings": config["max_sequence_length"],
        **_common(config),
    }


def qwen(model_type: str, *others: str) -> Callable[[Config], dict[str, Any]]:
    """A function of a config that names its settings as that type of transformers does."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
        "max_position_embeddings", *others,
    )  # fmt: skip
    return lambda config: {"model_type": model_type, **{name: config[name] for name in names}, **_common(config)}


def _common(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": rows(config),
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": rope(config),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "tie_word_embeddings": is_tied(config),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


LAYER = r"backbone.network.layers.\1"
QWEN_NAMES = {
    r"model\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+\.(?:weight|bias)|\w+_layernorm\.weight)": rf"{LAYER}.\2",
    r"model\.((?:embed_tokens|norm)\.weight)": r"backbone.network.\1",
    r"lm_head\.weight": "heads.tokens.weight",
}
BLOCK = r"model\.transformer\.blocks\.(\d+)"
LLADA_NAMES = {
    rf"{BLOCK}\.([qkv]_proj)\.weight": rf"{LAYER}.self_attn.\2.weight",
    rf"{BLOCK}\.attn_out\.weight": rf"{LAYER}.self_attn.o_proj.weight",
    rf"{BLOCK}\.ff_proj\.weight": rf"{LAYER}.mlp.gate_proj.weight",
    rf"{BLOCK}\.up_proj\.weight": rf"{LAYER}.mlp.up_proj.weight",
    rf"{BLOCK}\.ff_out\.weight": rf"{LAYER}.mlp.down_proj.weight",
    rf"{BLOCK}\.attn_norm\.weight": rf"{LAYER}.input_layernorm.weight",
    rf"{BLOCK}\.ff_norm\.weight": rf"{LAYER}.post_attention_layernorm.weight",
    r"model\.transformer\.wte\.weight": "backbone.network.embed_tokens.weight",
    r"model\.transformer\.ln_f\.weight": "backbone.network.norm.weight",
    r"model\.transformer\.ff_out\.weight": "heads.tokens.weight",
}
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "vocab_size",
)  # fmt: skip

LANGUAGES = {
    "llada": Language(
        architecture="LLaDAModelLM",
        needed=("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length", "rope_theta", "rms_norm_eps",
                "weight_tying", "block_type", "activation_type", "layer_norm_type", "rope"),
        fixed={
            "block_type": ("llama",), "activation_type": ("silu",), "layer_norm_type": ("rms",), "rope": (True,),
            "alibi": (False,), "attention_layer_norm": (False,), "layer_norm_with_affine": (True,),
            "bias_for_layer_norm": (False, None), "include_bias": (False,), "include_qkv_bias": (False, None),
            "input_emb_norm": (False,), "scale_logits": (False,), "block_group_size": (1,), "residual_dropout": (0,),
            "embedding_dropout": (0,),
        },
        unused=frozenset({
            "n_kv_heads", "multi_query_attention", "mlp_hidden_size", "mlp_ratio", "embedding_size", "alibi_bias_max",
            "attention_layer_norm_with_affine", "rope_full_precision", "flash_attention", "init_device", "init_fn",
            "init_std", "init_cutoff_factor", "precision", "train_max_sequence_length",
        }),
        names=LLADA_NAMES,
        backbone=llama,
        length=4096,
        end_of_turn="<|eot_id|>",
        # `generate.py`: 128 tokens in blocks of 32, one in a step, those of highest probability first
        generation=lambda _: {"sampler": TauLeaping(order="confidence"), "blocks": Blocks(32), "num_steps": 32,
                              "temperature": 0.0, "max_new_tokens": 128},
    ),
    "dream": Language(
        architecture="DreamModel",
        needed=SIZES,
        fixed={"use_sliding_window": (False,), "rope_scaling": (None,), "use_mrope": (False,)},
        unused=frozenset({"rope_theta", "rope_parameters", "sliding_window", "max_window_layers"}),
        names=QWEN_NAMES,
        backbone=qwen("qwen2"),
        shift=True,
        length=2048,
        end_of_turn="<|im_end|>",
        # README: 512 tokens, one in a step, those of lowest entropy first
        generation=lambda _: {"sampler": TauLeaping(order="entropy"), "num_steps": 512, "temperature": 0.2, "top_p": 0.95,
                              "max_new_tokens": 512},
    ),
    "sdar": Language(
        architecture="SDARForCausalLM",
        needed=(*SIZES, "head_dim"),
        fixed={"use_sliding_window": (False,), "rope_scaling": (None,)},
        unused=frozenset({
            "rope_theta", "rope_parameters", "sliding_window", "max_window_layers", "block_size", "attention_bias", "debug",
            "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep",
        }),
        names=QWEN_NAMES,
        backbone=lambda config: {**qwen("qwen3", "head_dim")(config), "attention_bias": config.get("attention_bias", False)},
        has_blocks=True,
        length=4096,
        end_of_turn="<|im_end|>",
        # `generate.py`: as many steps as there are positions in a block, or fewer where the network is sure
        generation=lambda size: {"sampler": TauLeaping(order="confidence", threshold=0.85), "blocks": Blocks(size, "exact"),
                                 "num_steps": size, "max_new_tokens": 128},
    ),
}  # fmt: skip
"""By family, which is the `model_type` of config.json in lower case."""
