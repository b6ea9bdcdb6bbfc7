"""What users of transformers expect of a model: hidden states, embeddings, tuples, pipelines, and a folder that says what
it is."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, pipeline

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import character_tokenizer
from tests.helpers import continuous, product_models
from tests.helpers.networks import data, network, noisy

MODELS: dict[str, dict[str, Any]] = {
    "masked": {},
    "classes": {"name": "mixture", "num_classes": 3},
    "dit": {"backbone": "dit", "condition_size": 16},
}
every_model = pytest.mark.parametrize("model", [pytest.param(network(**MODELS[name]), id=name) for name in MODELS])


@every_model
def test_forward__hidden_states_are_those_of_every_layer(model: GMModel) -> None:
    x, t = noisy(model, data())
    plain = model(input_ids=x, time=t)
    assert plain.hidden_states is None
    output = model(input_ids=x, time=t, output_hidden_states=True)
    states = output.hidden_states
    assert len(states) == model.config.num_hidden_layers + 1
    assert torch.equal(states[0], model.get_input_embeddings()(x))
    assert torch.equal(states[-1], plain.last_hidden_state)
    inside: list[torch.Tensor] = []
    hook = model.backbone.layers[0].register_forward_hook(lambda module, args, out: inside.append(out))
    model.config.output_hidden_states = True
    try:
        again = model(input_ids=x, time=t)
    finally:
        hook.remove()
        model.config.output_hidden_states = False
    assert torch.equal(again.hidden_states[1], inside[0])


def test_forward__hidden_states_of_several_fields_and_of_vectors() -> None:
    model = product_models.network("two lines")
    x = model.path.prior({"over": (2, 4), "size": (2, 3, 1), "under": (2, 6)})
    t = torch.full((2, 3), 0.5) if model.config.independent_times else torch.full((2,), 0.5)
    assert len(model(fields=x, time=t, output_hidden_states=True).hidden_states) == 3
    flow = continuous.network("flow")
    output = flow(input_values=torch.zeros(2, 5, 2), time=torch.full((2,), 0.5), output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_forward__attention_weights_are_refused_and_not_ignored() -> None:
    x = data()
    with pytest.raises(ValueError, match="output_attentions"):
        network()(input_ids=x, output_attentions=True)
    model = network(attn_implementation="eager")
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions"):
        model(input_ids=x)


@every_model
def test_forward__embeddings_take_the_place_of_tokens(model: GMModel) -> None:
    x, t = noisy(model, data())
    expected, embeds = model(input_ids=x, time=t), model.get_input_embeddings()(x)
    alone = model(inputs_embeds=embeds, time=t)
    assert alone.logits is None
    assert torch.equal(alone.last_hidden_state, expected.last_hidden_state)
    both = model(input_ids=x, inputs_embeds=embeds, time=t)
    assert torch.equal(both.logits, expected.logits)
    moved = model(input_ids=x, inputs_embeds=embeds + 1, time=t)
    assert not torch.equal(moved.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs_embeds": torch.zeros(5, 12, 31)}, r"inputs_embeds has shape \(5, 12, 31\).*B, L, 32"),
        ({"inputs_embeds": torch.zeros(5, 11, 32), "input_ids": data()}, r"inputs_embeds has shape .*5, 12, 32"),
        ({"inputs_embeds": torch.zeros(5, 12, 32), "labels": data()}, "inputs_embeds .*labels"),
    ],
)
def test_forward__embeddings_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network()(**options)


def test_forward__embeddings_are_refused_where_there_are_no_tokens() -> None:
    with pytest.raises(ValueError, match="inputs_embeds"):
        continuous.network("flow")(inputs_embeds=torch.zeros(2, 5, 32), time=torch.full((2,), 0.5))


def test_base_model__is_saved_and_loaded(tmp_path: File) -> None:
    model = network()
    model.base_model.save_pretrained(tmp_path)
    again, x = GMModel.from_pretrained(tmp_path), data()
    assert torch.equal(again(input_ids=x).logits, model(input_ids=x).logits)


def test_from_pretrained__takes_a_config_and_weights_without_a_folder() -> None:
    model, x = network(), data()
    again = GMModel.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert torch.equal(again(input_ids=x).logits, model(input_ids=x).logits)
    assert again.generate(num_steps=2).shape == (1, 12)


def test_save_pretrained__a_readme_says_how_to_load(tmp_path: File) -> None:
    network().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "from gm_discrete import GMModel" in card
    assert "GMModel.from_pretrained(" in card
    assert "MaskedPath" in card
    (tmp_path / "README.md").write_text("Mine.", encoding="utf-8")
    network().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "Mine."
    network().save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "README.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["gm", "dit"])
def test_pipelines__fill_masks_and_extract_features_from_a_folder(tmp_path: File, backbone: str) -> None:
    tokenizer = character_tokenizer(["to be or not to be"])
    path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
    torch.manual_seed(0)
    model = GMModel(
        GMConfig(path=path, backbone=backbone, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                 time_conditioning=False)
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.heads["tokens"].weight)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is GMModel
    ids = tokenizer("to b[MASK]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model(input_ids=ids)
    found = pipeline("fill-mask", model=str(tmp_path), device="cpu")("to b[MASK]", top_k=2)
    best = output.logits[0, -1].softmax(-1).topk(2)
    assert [one["token"] for one in found] == best.indices.tolist()
    assert [one["score"] for one in found] == pytest.approx(best.values.tolist())
    features = pipeline("feature-extraction", model=str(tmp_path), device="cpu")("to b[MASK]", return_tensors=True)
    torch.testing.assert_close(features, output.last_hidden_state)
