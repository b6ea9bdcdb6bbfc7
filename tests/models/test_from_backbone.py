"""`GMModel.from_backbone` and `GMConfig(backbone=…)`: symbols, masks, files, random weights, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertModel,
    CLIPTextConfig,
    FNetConfig,
    FNetForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
    T5Config,
    ViTConfig,
)

from gm_discrete import GMConfig, GMModel, MaskedPath, ProductPath, UniformPath
from gm_discrete.data import character_tokenizer
from gm_discrete.nn.language_models import check_arguments
from tests.helpers.backbones import (
    ARCHITECTURES,
    DECODER,
    FEW,
    MASK,
    PAD,
    V,
    config_of,
    data,
    made,
    network,
    noisy,
    original,
    randomised,
    raw_logits,
)
from tests.helpers.networks import rng

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
few = pytest.mark.parametrize("name", FEW)


def plain(name: str, **changes: Any) -> Any:
    """A network whose config names no mask."""
    return original(name, mask_token_id=None, **changes)


# ---- Symbols


@every_architecture
def test_from_backbone__adds_a_mask_where_there_is_none(name: str) -> None:
    """The last symbol, whose rows are the mean of the others; the network that was given stays as it is."""
    own = plain(name, token_dropout=False) if name == "esm" else plain(name)
    before = copy.deepcopy(own.state_dict())
    model: Any = GMModel.from_backbone(own)
    config = model.config
    assert (config.vocab_size, config.mask_token_id, config.pad_token_id) == (V + 1, V, PAD)
    assert config.backbone["vocab_size"] == V + 1
    head, embedding = model.heads.tokens, model.backbone.embed_tokens.weight
    for weight in (embedding, head.weight, *([] if head.bias is None else [head.bias])):
        assert weight.shape[0] == V + 1
        torch.testing.assert_close(weight[V], weight[:V].mean(0), rtol=1e-5, atol=1e-6)
    assert (head.weight is embedding) == bool(own.config.tie_word_embeddings)
    x = data()
    expected = network(name, changes={"token_dropout": False} if name == "esm" else None)
    torch.testing.assert_close(raw_logits(model, x)[..., :V], raw_logits(expected, x), rtol=1e-4, atol=1e-4)
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[key]) for key, weight in own.state_dict().items())
    x = torch.where(noisy(x) == MASK, V, x)
    model(input_ids=x, time=torch.full((3,), 0.5), labels=data()).loss.backward()
    assert bool(embedding.grad.any())


@few
@pytest.mark.parametrize("letters", ["abc", "abcdefghijklmnopqrstuv"], ids=["fewer tokens", "more tokens"])
def test_from_backbone__with_a_tokenizer_has_its_symbols(name: str, letters: str) -> None:
    tokenizer: Any = character_tokenizer(alphabet=letters)
    model = GMModel.from_backbone(plain(name), tokenizer=tokenizer)
    config = model.config
    assert config.vocab_size == max(V, len(tokenizer))
    assert config.mask_token_id == tokenizer.mask_token_id
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    sample = model.generate(tokenizer("abc", return_tensors="pt")["input_ids"], max_new_tokens=4, num_steps=2, seed=0)
    assert not bool((sample == tokenizer.mask_token_id).any())


def test_from_backbone__mask_of_a_decoder_among_its_spare_symbols_is_their_mean() -> None:
    """Published embeddings have more rows than tokenizers have tokens: that of a mask which is added was never trained."""
    own, tokenizer = plain("llama"), character_tokenizer(alphabet="abc")
    mask: Any = tokenizer.mask_token_id
    assert mask < V
    before, head = own.get_input_embeddings().weight.clone(), own.lm_head.weight.clone()
    model: Any = GMModel.from_backbone(own, tokenizer=tokenizer)
    found = model.backbone.embed_tokens.weight
    torch.testing.assert_close(found[mask], before.mean(0))
    others = torch.arange(V) != mask
    assert torch.equal(found[others], before[others])
    assert torch.equal(model.heads.tokens.weight, head)
    encoder: Any = plain("bert")  # was trained with its mask
    before = encoder.get_input_embeddings().weight.clone()
    model = GMModel.from_backbone(encoder, tokenizer=tokenizer)
    assert torch.equal(model.backbone.embed_tokens.weight, before)


def test_from_backbone__padding_that_ends_texts_is_trained() -> None:
    """The embedding of a token has a gradient, also where the language model pads with it."""
    model: Any = GMModel.from_backbone(plain("llama", eos_token_id=PAD))
    x = torch.tensor([[2, PAD, V, PAD]])  # V is the mask
    model(input_ids=x, time=torch.full((1,), 0.5), labels=torch.tensor([[2, PAD, 3, PAD]])).loss.backward()
    assert bool(model.backbone.embed_tokens.weight.grad[PAD].any())


def test_from_backbone__takes_a_path_with_enough_symbols() -> None:
    own = plain("llama")
    path = MaskedPath(V, mask_token_id=3)
    assert GMModel.from_backbone(own, path).path == path
    assert GMModel.from_backbone(own, "uniform").path == UniformPath(V)
    assert GMModel.from_backbone(own, UniformPath(V + 2)).config.time_conditioning
    for wrong, message in (
        (MaskedPath(V - 1), rf"vocab_size={V - 1}.*{V}"),
        ("maskd", "path='maskd'"),
        (7, "path=7"),
    ):
        with pytest.raises(ValueError, match=message):
            GMModel.from_backbone(own, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="mask_token_id"):
        GMModel.from_backbone(own, MaskedPath(V), tokenizer=character_tokenizer(alphabet="ab"))


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_from_backbone__default_length_is_what_the_network_has_positions_for(name: str) -> None:
    expected = {"bert": 32, "roberta": 30, "llama": 64}[name]
    model = network(name)
    assert model.config.max_position_embeddings == expected
    assert model.generate(num_steps=1).shape == (1, expected)
    assert network(name, max_position_embeddings=8).config.max_position_embeddings == 8


# ---- Files


@few
def test_from_backbone__loads_a_folder(name: str, tmp_path: Path) -> None:
    own, x = original(name), noisy(data())
    own.save_pretrained(tmp_path)
    model = GMModel.from_backbone(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert torch.equal(raw_logits(model, x), raw_logits(network(name, attn_implementation="eager"), x))
    half: Any = GMModel.from_backbone(str(tmp_path), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "model")
    loaded: Any = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, attn_implementation="eager")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert loaded.backbone.network.config._attn_implementation == "eager"
    with pytest.raises(OSError, match="nothing_here"):
        GMModel.from_backbone(tmp_path / "nothing_here")


@few
def test_model__sets_the_attention_of_its_backbone(name: str) -> None:
    model, x = network(name), noisy(data())
    expected = raw_logits(model, x)
    model.set_attn_implementation("eager")
    assert {model.config._attn_implementation, model.backbone.network.config._attn_implementation} == {"eager"}
    torch.testing.assert_close(raw_logits(model, x), expected, rtol=1e-4, atol=1e-5)


def test_model__has_the_implementations_of_attention_of_its_network(tmp_path: Path) -> None:
    """Gemma 2 caps the scores of attention, for which there is no sdpa: it is loaded with eager attention by itself."""
    own: Any = randomised(Gemma2ForCausalLM(made(Gemma2Config, **DECODER, head_dim=8, attn_logit_softcapping=1.0)))
    model: Any = GMModel.from_backbone(own)
    x = data()
    expected = raw_logits(model, x)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModel.from_pretrained(tmp_path)
    fresh: Any = GMModel(GMConfig.from_pretrained(tmp_path))
    for found in (loaded, fresh):
        assert found.config._attn_implementation == found.backbone.network.config._attn_implementation == "eager"
    torch.testing.assert_close(raw_logits(loaded, x), expected)
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        loaded.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        GMModel.from_pretrained(tmp_path, attn_implementation="sdpa")


@every_architecture
def test_model__can_be_copied(name: str) -> None:
    model, x = network(name), noisy(data())
    assert torch.equal(raw_logits(copy.deepcopy(model), x), raw_logits(model, x))


@pytest.mark.parametrize(
    ("name", "blocks"), [("qwen3", {"Qwen3DecoderLayer"}), ("bert", {"BertEmbeddings", "BertLayer"})]
)
def test_model__names_the_blocks_and_caches_of_its_network(name: str, blocks: set[str]) -> None:
    """accelerate spreads a model over devices by them."""
    model = network(name)
    assert model._no_split_modules == blocks
    assert model._skip_keys_device_placement == ({"past_key_values"} if name == "qwen3" else set())


# ---- Random weights


@every_architecture
def test_config__of_a_language_model_makes_a_network_of_random_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GMConfig(path=MaskedPath(V + 3), backbone=config_of(name), max_position_embeddings=8)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (V + 3, 32, 3)
    assert GMConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    model = GMModel(config).eval()
    x, t = data(length=8), torch.full((3,), 0.5).double()
    logits = raw_logits(model, x)
    assert bool(logits.isfinite().all())
    assert float(logits.detach().abs().max()) < 10
    if not config.tie_word_embeddings:  # as our own networks, it starts at the uniform distribution
        assert not bool(logits.any())
    loss = model(input_ids=torch.where(noisy(x) == MASK, V + 2, x), time=t, labels=x).loss
    loss.backward()
    assert bool(loss.isfinite())
    model.save_pretrained(tmp_path)
    assert torch.equal(raw_logits(AutoModel.from_pretrained(tmp_path), x), logits)
    assert GMModel(GMConfig(path=MaskedPath(V), backbone=config_of(name).to_dict())).config.shift == config.shift


@few
def test_model__takes_embeddings_and_returns_hidden_states(name: str) -> None:
    model, x = network(name), noisy(data())
    found = model(input_ids=x, output_hidden_states=True)
    assert len(found.hidden_states) == 4
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    embeds = model.get_input_embeddings()(x)
    torch.testing.assert_close(model(input_ids=x, inputs_embeds=embeds).logits, found.logits)
    torch.testing.assert_close(model(inputs_embeds=embeds).last_hidden_state, found.last_hidden_state)


@few
def test_classes__are_added_to_the_embeddings_and_start_without_effect(name: str) -> None:
    model, x, t = network(name, num_classes=2), noisy(data()), torch.full((3,), 0.5)
    labels = torch.tensor([0, 1, -1])
    before = model(input_ids=x, time=t).logits
    torch.testing.assert_close(model(input_ids=x, time=t, class_labels=labels).logits, before)
    with torch.no_grad():
        model.backbone.condition.weight.normal_(std=0.5, generator=rng(2))
        model.backbone.classes.weight.normal_(generator=rng(3))
    after, none = model(input_ids=x, time=t, class_labels=labels).logits, model(input_ids=x, time=t).logits
    torch.testing.assert_close(after[2], none[2])
    assert not torch.allclose(after[:2], none[:2], atol=1e-2)
    sample = model.generate(class_labels=labels, length=6, guidance_scale=2.0, num_steps=2)
    assert sample.shape == (3, 6)


# ---- What is refused

CONFIGS: dict[str, tuple[Any, str]] = {
    "images": (ViTConfig(), "'vit' is no language model"),
    "no language model": (CLIPTextConfig(), "'clip_text_model' is no language model"),
    "encoder and decoder": (T5Config(), "'t5' has an encoder and a decoder"),
    "several inputs": (Gemma3Config(), "'gemma3' has other inputs than text"),
    "decoder of an encoder": (config_of("bert", is_decoder=True), "is_decoder=True"),
    "a model of ours": (GMConfig(path=MaskedPath(V)), "GMModel.from_pretrained"),
    "unknown type": ({"model_type": "llamma"}, "model_type='llamma'"),
    "no type": ({"hidden_size": 8}, "model_type=None"),
    "unknown name": ("llama", "backbone='llama'"),
    "no number": ({"model_type": "llama", "num_attention_heads": "4"}, "no config of llama.*num_attention_heads"),
    "sizes that do not divide": (
        {"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4},
        "no config of llama",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config__refuses_backbones_that_are_no_language_models_of_text(case: str) -> None:
    backbone, message = CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        GMConfig(path=MaskedPath(V), backbone=backbone)


OPTIONS: dict[str, dict[str, Any]] = {
    "hidden_size=64": {"hidden_size": 64},
    "num_hidden_layers=2": {"num_hidden_layers": 2},
    "tie_word_embeddings=True": {"tie_word_embeddings": True},
    "conv_kernel_size=3": {"conv_kernel_size": 3},
    "hidden_dropout=0.1": {"hidden_dropout": 0.1},
    "attention_dropout=0.1": {"attention_dropout": 0.1},
    "rope_theta=5.0": {"rope_theta": 5.0},
    "noise_range=": {"noise_range": (0.0, 1.0)},
    "image_shape=": {"image_shape": [1, 2, 2]},
    "block_size=4 requires": {"block_size": 4, "path": UniformPath(V)},
    "'llama' takes a path of one discrete field": {"path": ProductPath({"a": MaskedPath(V), "b": MaskedPath(V)})},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_config__refuses_options_that_a_language_model_does_not_have(message: str) -> None:
    options = {"path": MaskedPath(V), "backbone": config_of("llama"), **OPTIONS[message]}
    with pytest.raises(ValueError, match=message):
        GMConfig(**options)


@pytest.mark.parametrize("backbone", ["gm", "dit"])
def test_config__shift_belongs_to_language_models(backbone: str) -> None:
    with pytest.raises(ValueError, match="shift=True"):
        GMConfig(path=MaskedPath(V), backbone=backbone, shift=True)


def test_from_backbone__refuses_models_that_are_not_understood() -> None:
    small: dict[str, Any] = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1}
    mamba: Any = MambaForCausalLM(MambaConfig(**small, pad_token_id=None, bos_token_id=None, eos_token_id=None))
    fnet: Any = FNetForMaskedLM(FNetConfig(**small, pad_token_id=None, bos_token_id=None, eos_token_id=None))
    for own, message in (
        (BertModel(config_of("bert")), "backbone is a BertModel.*give a BertForMaskedLM"),
        (LlamaForSequenceClassification(config_of("llama")), "LlamaForCausalLM"),
        (mamba, "'mamba' has no attention"),
        (network("llama"), "GMModel.from_pretrained"),
        (fnet, "'fnet' takes no attention_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            GMModel.from_backbone(own)
    with pytest.raises(TypeError, match="backbone=7"):
        GMModel.from_backbone(7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="tokenizer='llama' must be a tokenizer"):
        GMModel.from_backbone(plain("llama"), tokenizer="llama")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'llama' takes no inputs_embeds"):
        check_arguments(plain("llama").model, ["input_ids", "attention_mask"])


def test_from_backbone__names_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    folder = str(tmp_path / "none")
    with pytest.raises(OSError, match=f"backbone='{folder}' is no folder of a model"):
        GMModel.from_backbone(folder)
    with pytest.raises(ValueError, match="holds no model that transformers knows"):
        GMModel.from_backbone(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds an adapter without its model"):
        GMModel.from_backbone(tmp_path)


def test_from_pretrained__of_a_language_model_names_from_backbone(tmp_path: Path) -> None:
    plain("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='llama'.*GMModel\.from_backbone"):
        GMModel.from_pretrained(tmp_path)


def test_from_backbone__refuses_networks_with_layers_that_do_not_attend() -> None:
    """Some of their layers attend in both directions; the others go from left to right, through padding, too."""
    sizes: dict[str, Any] = {**DECODER, "num_hidden_layers": 2}
    lfm2 = Lfm2ForCausalLM(made(Lfm2Config, **sizes, layer_types=["conv", "full_attention"]))
    jamba = JambaForCausalLM(made(JambaConfig, **sizes, num_experts=1, attn_layer_period=2, attn_layer_offset=1))
    for own, kind in ((lfm2, "'lfm2'.*conv"), (jamba, "'jamba' has layers that cannot attend")):
        with pytest.raises(ValueError, match=kind):
            GMModel.from_backbone(own)


@pytest.mark.parametrize(("offloaded", "message"), [("model.embed_tokens", "embedding"), ("lm_head", "head")])
def test_from_backbone__refuses_to_change_weights_that_are_offloaded(
    offloaded: str, message: str, tmp_path: Path
) -> None:
    plain("llama").save_pretrained(tmp_path / "llama")
    places: dict[str, str] = {"model": "cpu", "lm_head": "cpu"}
    if offloaded != "lm_head":
        places = dict.fromkeys(("model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    options: dict[str, Any] = {"device_map": {**places, offloaded: "disk"}, "offload_folder": tmp_path / "offloaded"}
    with pytest.raises(ValueError, match=f"device_map offloads the {message}"):
        GMModel.from_backbone(tmp_path / "llama", "uniform", **options)


def test_from_backbone__refuses_a_language_model_with_adapters_inside() -> None:
    peft = pytest.importorskip("peft", reason="an extra: pip install peft")
    own: Any = plain("llama")
    own.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="backbone has an adapter"):
        GMModel.from_backbone(own)


@few
def test_config__refuses_padding_that_is_no_symbol(name: str) -> None:
    with pytest.raises(ValueError, match=f"pad_token_id=7.*vocab_size={PAD + 1}"):
        GMConfig(path=MaskedPath(PAD + 1), backbone=config_of(name, pad_token_id=7))


ENCODER: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def test_from_backbone__refuses_networks_that_padding_before_a_text_changes() -> None:
    """RoFormer counts positions by itself; with random numbers for sinusoids, scores depend on more than distances."""
    own = randomised(RoFormerForMaskedLM(made(RoFormerConfig, **ENCODER, embedding_size=16)))
    with pytest.raises(ValueError, match="'roformer' attends to padding"):
        GMModel.from_backbone(own)


def test_from_backbone__refuses_networks_that_get_no_more_symbols() -> None:
    bottleneck: dict[str, Any] = {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}
    own: Any = MobileBertForMaskedLM(made(MobileBertConfig, **ENCODER, **bottleneck))
    with pytest.raises(ValueError, match=f"'mobilebert' cannot get more than {V} symbols"):
        GMModel.from_backbone(own)


def test_from_backbone__refuses_a_network_whose_attention_stays_causal() -> None:
    own: Any = plain("llama")
    attend = type(own.model.layers[0].self_attn).forward
    for layer in own.model.layers:

        def causal(self: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["attention_mask"], kwargs["is_causal"] = None, True
            return attend(self, hidden, *args, **kwargs)

        layer.self_attn.__class__ = type(
            "Causal",
            (type(layer.self_attn),),
            {"forward": lambda self, hidden_states, *a, f=causal, **k: f(self, hidden_states, *a, **k)},
        )
    with pytest.raises(ValueError, match=r"'llama' (does not attend to later positions|attends to padding)"):
        GMModel.from_backbone(own)


def test_from_backbone__refuses_logits_that_are_computed_in_another_way() -> None:
    own: Any = plain("llama")
    own.forward = lambda *args, **kwargs: type(
        "Output", (), {"logits": type(own).forward(own, *args, **kwargs).logits * 2}
    )
    with pytest.raises(ValueError, match="'llama' computes its logits in a way that is not known"):
        GMModel.from_backbone(own)


def test_from_backbone__refuses_unknown_and_useless_options() -> None:
    own = plain("llama")
    with pytest.raises(TypeError, match=r"block_sizes.*block_size"):
        GMModel.from_backbone(own, block_sizes=4)
    with pytest.raises(ValueError, match="attn_implementation"):
        GMModel.from_backbone(own, attn_implementation="eager")
    with pytest.raises(ValueError, match="conv_kernel_size=3"):
        GMModel.from_backbone(own, conv_kernel_size=3)
