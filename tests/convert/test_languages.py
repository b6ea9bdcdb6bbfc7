"""LLaDA, Dream and SDAR, converted: their models compute what the originals do, by an independent forward pass."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from gm_discrete import GMModel, MaskedPath, likelihood_bound
from gm_discrete.convert import convert, main
from gm_discrete.convert.shards import PIECE
from tests.helpers.languages import CONFIGS, EOS, MASK, TEMPLATE, K, logits, state_dict, write

CLOSE = 1e-4
"""Of float32 against float64, for logits of size 10."""

every_family = pytest.mark.parametrize("name", CONFIGS)


def converted(at: Path, name: str, state: dict[str, Tensor] | None = None, **options: Any) -> Any:
    """The model of a folder that was written and converted."""
    source = write(at / "source", name, state_dict(name) if state is None else state, **options)
    return AutoModel.from_pretrained(convert(source, at / "model")).eval()


def noisy(rows: int = 3, length: int = 12) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(K, (rows, length), generator=rng)
    x[torch.rand(x.shape, generator=rng) < 0.4] = MASK
    return x


def raw(model: Any, x: Tensor) -> Tensor:
    """The logits of the head, of all symbols at all positions."""
    with torch.no_grad():
        return model.heads.tokens(model(input_ids=x).last_hidden_state).double()


# ---- what is computed


@every_family
def test_convert__logits_are_those_of_the_formulas(tmp_path: Path, name: str) -> None:
    model, x = converted(tmp_path, name, shards=3), noisy()
    expected = logits(name, state_dict(name), x)
    assert float(expected.std()) > 1
    torch.testing.assert_close(raw(model, x), expected, rtol=0, atol=CLOSE)
    without = expected.clone()
    without[..., MASK] = -torch.inf
    masked = x == MASK
    with torch.no_grad():
        posterior = model(input_ids=x).logits.double().log_softmax(-1)
    torch.testing.assert_close(posterior[masked].exp(), without[masked].softmax(-1), rtol=0, atol=CLOSE)


@every_family
def test_convert__model_has_the_settings_of_its_family(tmp_path: Path, name: str) -> None:
    model = converted(tmp_path, name)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["backbone"]["model_type"] == {"llada": "llama", "dream": "qwen2", "sdar": "qwen3"}[name]
    assert model.path == MaskedPath(K, MASK)
    assert model.config.shift is (name == "dream")
    assert model.config.block_size == (4 if name == "sdar" else None)
    assert model.config.max_position_embeddings == (2048 if name == "dream" else 4096)
    assert (model.config.eos_token_id, model.config.mask_token_id) == (EOS, MASK)
    assert model.backbone.network.config.num_key_value_heads == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "source"]  # nothing half-done is left


@pytest.mark.parametrize("kept", [False, True])
@every_family
def test_convert__tied_weights_stay_tied(tmp_path: Path, name: str, kept: bool) -> None:
    """Also if the source holds the head beside the embedding that it is."""
    state = state_dict(name, tied=True)
    with_head = dict(state)
    if kept:
        embedding, head = ("wte", "ff_out") if name == "llada" else ("embed_tokens", "lm_head")
        at = "model.transformer." if name == "llada" else ""
        with_head[f"{at}{head}.weight"] = state[next(key for key in state if embedding in key)].clone()
    tied = {"weight_tying": True} if name == "llada" else {"tie_word_embeddings": True}
    model, x = converted(tmp_path, name, with_head, shards=2, **tied), noisy()
    assert model.heads.tokens.weight is model.backbone.embed_tokens.weight
    torch.testing.assert_close(raw(model, x), logits(name, state, x), rtol=0, atol=CLOSE)


def test_convert__llada_takes_queries_that_share_keys_as_their_config_says(tmp_path: Path) -> None:
    config = {"n_kv_heads": None, "multi_query_attention": True}
    state = state_dict("llada")
    for key in state:
        if "k_proj" in key or "v_proj" in key:
            state[key] = state[key][:4].repeat(2, 1)  # both groups have the same keys and values
    single = {key: (t[:4] if "k_proj" in key or "v_proj" in key else t) for key, t in state.items()}
    model, x = converted(tmp_path, "llada", single, **config), noisy()
    torch.testing.assert_close(raw(model, x), logits("llada", state, x), rtol=0, atol=CLOSE)


def test_convert__rotary_base_may_stand_among_rope_parameters(tmp_path: Path) -> None:
    rope = {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    model, x = converted(tmp_path, "dream", **rope), noisy()
    torch.testing.assert_close(raw(model, x), logits("dream", state_dict("dream"), x), rtol=0, atol=CLOSE)


# ---- files


@every_family
def test_convert__weights_keep_their_bits_and_their_files(tmp_path: Path, name: str) -> None:
    state = state_dict(name, dtype=torch.bfloat16)
    model = converted(tmp_path, name, state, shards=3)
    assert model.dtype is torch.bfloat16
    folder = tmp_path / "model"
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            found |= {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
            assert all(index["weight_map"][key] == file.name for key in shard.keys())  # noqa: SIM118
    assert len(found) == len(state)
    assert sorted(tensor.double().sum() for tensor in found.values()) == sorted(
        t.double().sum() for t in state.values()
    )
    assert all(tensor.dtype is torch.bfloat16 for tensor in found.values())
    _, report = GMModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.slow
def test_convert__memory_stays_below_one_shard(tmp_path: Path) -> None:
    """6 shards of 64 MB: the embedding, the head, and four layers. A piece of 8 MB is in memory at a time."""
    width, hidden, rows = 1024, 4096, 2**14
    layer = {
        "mlp.gate_proj.weight": (hidden, width), "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden), "self_attn.q_proj.weight": (width, width),
        "self_attn.o_proj.weight": (width, width),
        "self_attn.k_proj.weight": (512, width), "self_attn.v_proj.weight": (512, width), "self_attn.q_proj.bias": (width,),
        "self_attn.k_proj.bias": (512,), "self_attn.v_proj.bias": (512,), "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    shapes = [{f"model.layers.{i}.{part}": shape for part, shape in layer.items()} for i in range(4)]
    shapes += [
        {"model.embed_tokens.weight": (rows, width)},
        {"lm_head.weight": (rows, width), "model.norm.weight": (width,)},
    ]
    state = {name: torch.ones(shape) for shard in shapes for name, shape in shard.items()}
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": 4, "vocab_size": rows}
    source = write(
        tmp_path / "source", "dream", state, shards=[list(shard) for shard in shapes], tokenizer=False, **sizes
    )
    del state
    shard = min(file.stat().st_size for file in source.glob("*.safetensors"))
    convert(write(tmp_path / "small", "dream", state_dict("dream"), tokenizer=False), tmp_path / "first")  # loads code
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here on
    before = memory("VmRSS")
    convert(source, tmp_path / "model")
    peak = memory("VmHWM") - before
    print(f"peak {peak / 2**20:.0f} MB above {before / 2**20:.0f} MB; 6 shards of at least {shard / 2**20:.0f} MB")
    assert shard / 4 > PIECE
    assert peak < shard


def memory(kind: str) -> int:
    """Bytes in memory now (VmRSS), or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


# ---- tokenizer


@every_family
def test_convert__tokenizer_has_the_mask_and_its_chat_template(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (MASK, EOS)
    assert len(tokenizer) < K
    assert tokenizer("an a<|mask|>")["input_ids"] == [28, 27, MASK]
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in settings
    assert sorted(file.name for file in (tmp_path / "model").glob("*.py")) == []
    turn = "<|eot_id|>" if name == "llada" else "<|im_end|>"
    assert tokenizer.chat_template == TEMPLATE.replace("<|end|>", turn)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "an"}], tokenize=False)
    assert tokenizer(text)["input_ids"] == [29, 28, 32]


def test_convert__mask_is_given_or_that_of_the_tokenizer(tmp_path: Path) -> None:
    source = write(tmp_path / "dream", "dream", state_dict("dream"), mask_token_id=None)
    assert GMModel.from_pretrained(convert(source, tmp_path / "found")).path == MaskedPath(K, MASK)
    assert GMModel.from_pretrained(convert(source, tmp_path / "given", mask_token_id=29)).path == MaskedPath(K, 29)
    assert AutoTokenizer.from_pretrained(tmp_path / "given").mask_token == "<|startoftext|>"
    source = write(tmp_path / "llada", "llada", state_dict("llada"), mask_token_id=None)
    with pytest.raises(ValueError, match="mask_token_id is missing"):
        convert(source, tmp_path / "none")
    with pytest.raises(ValueError, match="without a token of mask_token_id=35"):
        convert(source, tmp_path / "none", mask_token_id=35)
    assert not (tmp_path / "none").exists()


def test_convert__block_size_is_given_where_the_config_lacks_it(tmp_path: Path) -> None:
    source = write(tmp_path / "sdar", "sdar", state_dict("sdar"), block_size=None)
    with pytest.raises(ValueError, match="block_size is missing"):
        convert(source, tmp_path / "model")
    main([str(source), str(tmp_path / "model"), "--block-size", "8", "--length", "64"])
    model = GMModel.from_pretrained(tmp_path / "model")
    assert (model.config.block_size, model.config.max_position_embeddings) == (8, 64)
    assert model.generation_config.blocks.length == 8


# ---- use


@every_family
def test_convert__bound_is_that_of_the_predictions(tmp_path: Path, name: str) -> None:
    """The mean of −log π over the sets of masked positions, each with its weight in the integral over κ = t."""
    model, z = converted(tmp_path, name), noisy(2, 4) % 29
    found = likelihood_bound(model, z, num_samples=128, rng=torch.Generator().manual_seed(0))
    total = torch.zeros(len(z), dtype=torch.double)
    for chosen in range(1, 1 << 4):
        masked = torch.tensor([bool(chosen >> place & 1) for place in range(4)])
        prediction = logits(name, state_dict(name), torch.where(masked, MASK, z))
        prediction[..., MASK] = -torch.inf
        nats = -prediction.log_softmax(-1).gather(-1, z[..., None]).squeeze(-1)[:, masked].sum(1)
        m = int(masked.sum())
        total += nats * math.gamma(5 - m) * math.gamma(m) / math.gamma(5)  # ∫ t^(4−m) (1−t)^(m−1) dt
    assert found.nats_stderr is not None
    assert bool(((found.nats - total).abs() < 4 * found.nats_stderr).all())
    assert bool((found.nats_stderr < 0.1 * total).all())


def test_convert__llada_generates_as_its_example(tmp_path: Path) -> None:
    """Blocks from left to right, one position in a step: the one of highest probability, with its most likely symbol."""
    model = converted(tmp_path, "llada")
    config = model.generation_config
    assert (config.blocks.length, config.num_steps, config.max_new_tokens, config.temperature) == (32, 32, 128, 0.0)
    assert (config.sampler.order, config.eos_token_id, config.pad_token_id) == ("confidence", [EOS, 32], EOS)
    prompt = torch.tensor([[1, 2, 3]])
    found = model.generate(
        prompt, max_new_tokens=8, blocks={"length": 4, "type": "blocks"}, num_steps=4, eos_token_id=38
    )
    x = torch.cat([prompt, torch.full((1, 8), MASK)], 1)
    for block in (slice(3, 7), slice(7, 11)):
        for _ in range(4):
            prediction = logits("llada", state_dict("llada"), x)
            prediction[..., MASK] = -torch.inf
            confidence, symbol = prediction.softmax(-1).max(-1)
            confidence = confidence.masked_fill(x != MASK, -1)[0, block]
            place = block.start + int(confidence.argmax())
            x[0, place] = symbol[0, place]
    assert found.tolist() == x.tolist()


def test_convert__dream_generates_as_its_example(tmp_path: Path) -> None:
    """One position in a step, the one of lowest entropy."""
    model = converted(tmp_path, "dream")
    config = model.generation_config
    assert (config.blocks, config.num_steps, config.max_new_tokens, config.top_p) == (None, 512, 512, 0.95)
    assert (config.sampler.order, config.temperature, config.eos_token_id) == ("entropy", 0.2, [EOS, 32])
    prompt = torch.tensor([[1, 2, 3]])
    found = model.generate(prompt, max_new_tokens=8, num_steps=8, temperature=0.0)
    x = torch.cat([prompt, torch.full((1, 8), MASK)], 1)
    for _ in range(8):
        prediction = logits("dream", state_dict("dream"), x)
        prediction[..., MASK] = -torch.inf
        entropy = torch.special.entr(prediction.softmax(-1)).sum(-1).masked_fill(x != MASK, torch.inf)
        place = int(entropy[0].argmin())
        x[0, place] = prediction[0, place].argmax()
    assert found.tolist() == x.tolist()


def test_convert__sdar_generates_as_its_example(tmp_path: Path) -> None:
    """Blocks of 4, counted from the begin of the prompt; all positions above a probability, or else the best one."""
    model = converted(tmp_path, "sdar")
    config = model.generation_config
    assert (config.blocks.length, config.blocks.cache, config.max_new_tokens) == (4, "exact", 128)
    assert (config.sampler.threshold, config.eos_token_id) == (0.85, [EOS, 32])
    prompt = torch.tensor([[1, 2, 3, 4, 5, 6]])
    found = model.generate(prompt, max_new_tokens=6, temperature=0.0, eos_token_id=38)
    x = torch.cat([prompt, torch.full((1, 6), MASK)], 1)
    for block in (slice(4, 8), slice(8, 12)):
        while bool((x[:, block] == MASK).any()):
            prediction = logits("sdar", state_dict("sdar"), x)
            prediction[..., MASK] = -torch.inf
            confidence, symbol = prediction.softmax(-1).max(-1)
            confidence = confidence.masked_fill(x != MASK, -1)[0, block]
            chosen = (confidence > 0.85) | (confidence == confidence.max())
            x[0, block] = torch.where(chosen, symbol[0, block], x[0, block])
    assert found.tolist() == x.tolist()


@every_family
def test_convert__runs_in_the_harness(tmp_path: Path, name: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from gm_discrete.evaluation.harness import GMHarness

    converted(tmp_path, name)
    harness: Any = GMHarness(str(tmp_path / "model"), num_samples=4, max_length=32, num_steps=2)  # pyright: ignore[reportCallIssue]
    instance: Any = Instance
    ((score, greedy),) = harness.loglikelihood([instance("loglikelihood", {}, ("an a", "an an"), 0)])
    assert score < 0
    assert isinstance(greedy, bool)
    (text,) = harness.generate_until([instance("generate_until", {}, ("an a", {"until": [], "max_gen_toks": 4}), 0)])
    assert isinstance(text, str)


# ---- errors


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def damage(source: Path, what: str) -> None:
    second = source / "model-2-of-3.safetensors"
    match what:
        case "missing":
            second.unlink()
        case "truncated":
            cut(second, second.stat().st_size - 1)
        case "header":
            cut(second, 20)
        case "empty":
            cut(second, 0)
        case "text":
            second.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
        case "twice":
            second.write_bytes((source / "model-1-of-3.safetensors").read_bytes())
        case "index":
            (source / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
        case "config":
            (source / "config.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("missing", FileNotFoundError, "lacks model-2-of-3.safetensors"),
        ("truncated", ValueError, r"model-2-of-3.safetensors.* is truncated: it holds \d+ bytes"),
        ("header", ValueError, r"model-2-of-3.safetensors.* is truncated"),
        ("empty", ValueError, r"model-2-of-3.safetensors.* is no safetensors file"),
        ("text", ValueError, r"model-2-of-3.safetensors.* is no safetensors file"),
        ("twice", ValueError, r"model-2-of-3.safetensors.* is also in model-1-of-3.safetensors"),
        ("index", ValueError, "model.safetensors.index.json is no index"),
        ("config", ValueError, "config.json is no JSON"),
    ],
)
@every_family
def test_convert__names_the_file_that_is_damaged(
    tmp_path: Path, name: str, what: str, kind: type[Exception], message: str
) -> None:
    source = write(tmp_path / "source", name, state_dict(name), shards=3)
    damage(source, what)
    with pytest.raises(kind, match=message):
        convert(source, tmp_path / "deep" / "model")
    assert not (tmp_path / "deep").exists()


@every_family
def test_convert__names_the_weight_that_is_wrong(tmp_path: Path, name: str) -> None:
    plain = state_dict(name)
    key = next(key for key in plain if "q_proj.weight" in key)
    wrong: dict[str, tuple[dict[str, Tensor], str]] = {
        "shape": ({key: plain[key][:-1]}, rf"{key} of .*model.safetensors.* has shape \(\d+, 16\); .*\(\d+, 16\)"),
        "more": (
            {key.replace("0", "7"): plain[key].clone()},
            f"{key.replace('0', '7')} of .*model.safetensors.* is unexpected",
        ),
        "other": ({"vision.weight": plain[key].clone()}, "vision.weight of .*model.safetensors.* is no weight of"),
        "integers": ({key: plain[key].to(torch.int8)}, f"{key} of .*model.safetensors.* is of I8: quantized"),
        "NaN": ({key: plain[key] * torch.nan}, f"{key} of .*model.safetensors.* holds NaN"),
    }
    for kind, (change, message) in wrong.items():
        source = write(tmp_path / kind, name, {**plain, **change})
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    source = write(tmp_path / "less", name, {other: tensor for other, tensor in plain.items() if other != key})
    with pytest.raises(ValueError, match=r"lacks weights: .*layers.0.self_attn.q_proj.weight"):
        convert(source, tmp_path / "model")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*wrong, "less"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llada", {"alibi": True}),
        ("llada", {"rope": False}),
        ("llada", {"layer_norm_type": "gemma_rms"}),
        ("llada", {"layer_norm_with_affine": False}),
        ("llada", {"attention_layer_norm": True}),
        ("llada", {"input_emb_norm": True}),
        ("llada", {"scale_logits": True}),
        ("llada", {"block_type": "sequential"}),
        ("llada", {"block_group_size": 2}),
        ("llada", {"activation_type": "swiglu"}),
        ("llada", {"include_bias": True}),
        ("llada", {"include_qkv_bias": True}),
        ("llada", {"bias_for_layer_norm": True}),
        ("llada", {"residual_dropout": 0.1}),
        ("llada", {"clip_qkv": 8.0}),
        ("llada", {"architectures": ["LLaDAMoEModelLM"]}),
        ("dream", {"use_sliding_window": True}),
        ("dream", {"rope_scaling": {"type": "yarn"}}),
        ("dream", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}),
        ("dream", {"use_mrope": True}),
        ("dream", {"final_logit_softcap": 30.0}),
        ("dream", {"block_size": 32}),
        ("dream", {"architectures": ["DreamForCausalLM"]}),
        ("sdar", {"use_sliding_window": True}),
        ("sdar", {"num_experts": 8}),
    ],
)
def test_convert__settings_that_are_not_implemented_are_refused(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    source = write(tmp_path / "source", name, state_dict(name), **change)
    (key,) = change
    with pytest.raises(ValueError, match=f"source.*{key}="):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "key"),
    [("llada", "d_model"), ("llada", "rope_theta"), ("dream", "rope_theta"), ("dream", "num_key_value_heads"),
     ("sdar", "head_dim"), ("sdar", "rms_norm_eps")],
)  # fmt: skip
def test_convert__settings_that_are_missing_are_named(tmp_path: Path, name: str, key: str) -> None:
    source = write(tmp_path / "source", name, state_dict(name), **cast(Any, {key: None}))
    with pytest.raises(ValueError, match=f"source.*{key}"):
        convert(source, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llada", {"n_heads": "4"}),
        ("llada", {"d_model": 17}),
        ("llada", {"mask_token_id": K}),
        ("llada", {"eos_token_id": K}),
        ("dream", {"hidden_act": "unknown"}),
        ("dream", {"rope_parameters": 3}),
        ("dream", {"max_position_embeddings": "many"}),
        ("sdar", {"block_size": -1}),
    ],
)
def test_convert__settings_out_of_range_are_named(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    source = write(tmp_path / "source", name, state_dict(name), **change)
    with pytest.raises(ValueError, match=f"source.* is no {name} that can be converted"):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_convert__options_of_other_families_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "llada", state_dict("llada"))
    others: list[dict[str, Any]] = [
        {"num_attention_heads": 2},
        {"time_conditioning": True},
        {"eps": 0.1},
        {"ema": False},
    ]
    for options in others:
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            convert(source, tmp_path / "model", **options)
    with pytest.raises(ValueError, match="block_size=4 belongs to SDAR"):
        convert(source, tmp_path / "model", block_size=4)
    with pytest.raises(ValueError, match=r"model.safetensors.* is a file"):
        convert(source / "model.safetensors", tmp_path / "model", "llada")
    other = write(tmp_path / "other", "sdar", state_dict("sdar"), model_type="sdar_moe")
    with pytest.raises(ValueError, match=r"model_type='sdar_moe'.*llada, dream, sdar"):
        convert(other, tmp_path / "model")


def test_convert__pickled_weights_of_languages_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "dream", state_dict("dream"))
    (source / "model.safetensors").unlink()
    torch.save(state_dict("dream"), source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin; dream is read from safetensors"):
        convert(source, tmp_path / "model")
