"""LLaDA, Dream and SDAR at small sizes: their files, and their networks, written from the formulas in float64."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu

K, WIDTH, HEADS, GROUPS, DEPTH, HIDDEN = 40, 16, 4, 2, 2, 24
WORDS = 29
"""Words of a text tokenizer, the first symbols. Special tokens follow; the embedding has more rows than there are tokens."""
SPECIAL = {"<|startoftext|>": 29, "<|endoftext|>": 30, "<|mask|>": 31, "<|end|>": 32}
MASK, EOS = 31, 30

CONFIGS: dict[str, dict[str, Any]] = {
    "llada": {
        "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
        "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig"}, "bias_for_layer_norm": False, "block_group_size": 1,
        "block_type": "llama", "d_model": WIDTH, "embedding_dropout": 0.0, "embedding_size": K, "eos_token_id": EOS,
        "flash_attention": False, "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None,
        "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "mask_token_id": MASK, "max_sequence_length": 4096, "mlp_hidden_size": HIDDEN,
        "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": HEADS, "n_kv_heads": GROUPS,
        "n_layers": DEPTH, "pad_token_id": EOS, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05,
        "rope": True, "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False,
        "transformers_version": "4.46.3", "use_cache": False, "vocab_size": K, "weight_tying": False,
    },
    "dream": {
        "architectures": ["DreamModel"], "attention_dropout": 0.0, "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": EOS, "eos_token_id": EOS, "hidden_act": "silu", "hidden_size": WIDTH, "initializer_range": 0.02,
        "intermediate_size": HIDDEN, "mask_token_id": MASK, "max_position_embeddings": 131072, "max_window_layers": 28,
        "model_type": "Dream", "num_attention_heads": HEADS, "num_hidden_layers": DEPTH, "num_key_value_heads": GROUPS,
        "pad_token_id": EOS, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.46.2", "use_cache": True,
        "use_mrope": False, "use_sliding_window": False, "vocab_size": K,
    },
    "sdar": {
        "architectures": ["SDARForCausalLM"], "auto_map": {"AutoModel": "modeling_sdar.SDARModel"}, "attention_bias": False,
        "attention_dropout": 0.0, "attn_implementation": "flex_attention", "bos_token_id": EOS, "debug": False,
        "eos_token_id": EOS, "block_size": 4, "mask_token_id": MASK, "ep_size": 1, "fuse_cross_entropy": True, "head_dim": 6,
        "hidden_act": "silu", "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": HIDDEN,
        "max_position_embeddings": 32768, "max_window_layers": 36, "micro_forward": False, "model_type": "sdar",
        "num_attention_heads": HEADS, "num_hidden_layers": DEPTH, "num_key_value_heads": GROUPS, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "skip_checkpoint": False, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.52.4", "use_cache": False,
        "use_deepep": False, "use_sliding_window": False, "vocab_size": K,
    },
}  # fmt: skip
"""What stands in their config.json, but for the sizes."""

PARTS = {
    "llada": ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"),
    "dream": ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}  # fmt: skip
PARTS["sdar"] = PARTS["dream"]
"""Names of the parts of a layer: norm, queries, keys, values, output; norm, gate, input, output."""
OUTER = {
    "llada": (
        "model.transformer.wte",
        "model.transformer.ln_f",
        "model.transformer.ff_out",
        "model.transformer.blocks",
    ),
    "dream": ("model.embed_tokens", "model.norm", "lm_head", "model.layers"),
}
OUTER["sdar"] = OUTER["dream"]


def state_dict(name: str, tied: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under the names of the originals."""
    head = CONFIGS[name].get("head_dim", WIDTH // HEADS)
    sizes = (
        (WIDTH,), (HEADS * head, WIDTH), (GROUPS * head, WIDTH), (GROUPS * head, WIDTH), (WIDTH, HEADS * head),
        (WIDTH,), (HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN),
    )  # fmt: skip
    embedding, norm, output, layers = OUTER[name]
    shapes: dict[str, tuple[int, ...]] = {f"{embedding}.weight": (K, WIDTH)}
    for i in range(DEPTH):
        at = f"{layers}.{i}"
        shapes |= {f"{at}.{part}.weight": size for part, size in zip(PARTS[name], sizes, strict=True)}
        if name == "dream":
            shapes |= {f"{at}.self_attn.{part}_proj.bias": (sizes["qkv".index(part) + 1][0],) for part in "qkv"}
        if name == "sdar":
            shapes |= {f"{at}.self_attn.{part}_norm.weight": (head,) for part in "qk"}
    shapes[f"{norm}.weight"] = (WIDTH,)
    if not tied:
        shapes[f"{output}.weight"] = (K, WIDTH)
    rng = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=rng) / (shape[-1] ** 0.5) for name, shape in shapes.items()}
    return {
        name: (tensor + 1 if "norm" in name or "ln_f" in name else tensor * (3 if K in tensor.shape else 1)).to(dtype)
        for name, tensor in weights.items()
    }


def logits(name: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """[B, L, K], row i the prediction of position i.

    RMSNorm(h) = h w/√(mean h² + ε). Rotary positions turn channels c and c + d/2 of a head by p θ^(−2c/d). Attention is
    softmax(q·k/√d); with SDAR within blocks and to those before. The feed-forward network is W₃(silu(W₁h) ⊙ W₂h).
    """
    config, weight = CONFIGS[name], {key: tensor.double() for key, tensor in state.items()}
    embedding, final, output, layers = OUTER[name]
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    h = weight[f"{embedding}.weight"][x]
    length, groups = x.shape[1], (HEADS, GROUPS, GROUPS)
    visible = torch.ones(length, length, dtype=torch.bool)
    if name == "sdar":
        block = torch.arange(length) // config["block_size"]
        visible = block[:, None] >= block[None, :]

    def norm(h: Tensor, key: str) -> Tensor:
        return h * weight[f"{key}.weight"] / (h.square().mean(-1, keepdim=True) + eps).sqrt()

    def linear(h: Tensor, key: str) -> Tensor:
        return h @ weight[f"{key}.weight"].T + weight.get(f"{key}.bias", torch.zeros(()))

    def turned(h: Tensor) -> Tensor:
        half = h.shape[-1] // 2
        angle = torch.arange(length).double()[:, None] * theta ** (-torch.arange(half).double() / half)
        a, b = h[..., :half], h[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    for i in range(DEPTH):
        first, *qkv, mixed, second, gate, up, down = (f"{layers}.{i}.{part}" for part in PARTS[name])
        q, k, v = (linear(norm(h, first), part).unflatten(-1, (n, -1)) for part, n in zip(qkv, groups, strict=True))
        if name == "sdar":
            q, k = norm(q, f"{layers}.{i}.self_attn.q_norm"), norm(k, f"{layers}.{i}.self_attn.k_norm")
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        q, k = turned(q), turned(k)
        k, v = (part.repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
        score = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
        h = h + linear((score.softmax(-1) @ v).transpose(1, 2).flatten(2), mixed)
        inner = norm(h, second)
        h = h + linear(silu(linear(inner, gate)) * linear(inner, up), down)
    found = norm(h, final) @ weight.get(f"{output}.weight", weight[f"{embedding}.weight"]).T
    return torch.cat([found[:, :1], found[:, :-1]], 1) if name == "dream" else found


def write(
    at: Path,
    name: str,
    state: dict[str, Tensor],
    shards: int | list[list[str]] = 1,
    tokenizer: bool = True,
    **settings: object,
) -> Path:
    """A folder as the hub has it.

    Args:
        shards: their number, or the names of the weights in each.
    """
    at.mkdir(parents=True)
    (at / "config.json").write_text(json.dumps({**CONFIGS[name], **settings}), encoding="utf-8")
    parts = [list(state)[i::shards] for i in range(shards)] if isinstance(shards, int) else shards
    number = len(parts)
    files = (
        ["model.safetensors"] if number == 1 else [f"model-{i}-of-{number}.safetensors" for i in range(1, number + 1)]
    )
    for file, part in zip(files, parts, strict=True):
        save_file({key: state[key].contiguous() for key in part}, at / file, {"format": "pt"})
    if number > 1:
        places = {key: file for file, part in zip(files, parts, strict=True) for key in part}
        index = json.dumps({"metadata": {"total_size": 0}, "weight_map": places})
        (at / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    if tokenizer:
        write_tokenizer(at, name)
    return at


TEMPLATE = "{% for m in messages %}<|startoftext|>{{ m['content'] }}<|end|>{% endfor %}"


def write_tokenizer(at: Path, name: str) -> None:
    """The files of a tokenizer: with tokenizer.json, or for Dream without it, and of a class whose code is beside it."""
    turn = "<|eot_id|>" if name == "llada" else "<|im_end|>"
    special = {token.replace("<|end|>", turn): number for token, number in SPECIAL.items()}
    template = TEMPLATE.replace("<|end|>", turn)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {symbol: i for i, symbol in enumerate([*letters, "Ġ", "Ġa", "an"])}
    merges = [("Ġ", "a"), ("a", "n")]
    assert len(vocabulary) == WORDS
    settings: dict[str, Any] = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 4096}
    added = {
        str(number): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
                      "single_word": False}
        for token, number in special.items()
    }  # fmt: skip
    if name == "dream":
        (at / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (at / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]), encoding="utf-8")
        code = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
        settings |= {"tokenizer_class": "DreamTokenizer", "auto_map": code, "added_tokens_decoder": added}
        settings["mask_token"] = "<|mask|>"
    else:
        bpe: Any = tokenizers.models.BPE(vocabulary, merges)  # pyright: ignore[reportAttributeAccessIssue]
        built = tokenizers.Tokenizer(bpe)
        built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        built.decoder = tokenizers.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        built.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
        built.save(str(at / "tokenizer.json"))
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>"}
    if name == "sdar":  # names a mask that its tokenizer.json does not have
        (at / "added_tokens.json").write_text(json.dumps({"<MASK>": MASK}), encoding="utf-8")
        settings |= {"mask_token": "<MASK>", "additional_special_tokens": ["<MASK>"]}
        (at / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        settings["chat_template"] = template
    (at / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
