"""Runs that train a LoRA adapter resume as all others do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gm_discrete import GMModel, MaskedPath
from gm_discrete.training import GMTrainer, add_lora, checkpointed, load_adapter
from gm_discrete.training.adapters import FROZEN, describe_base
from tests.helpers.small_run import TOKENIZER, Interrupt, checkpoint, losses, rows, small_model, small_trainer

peft = pytest.importorskip("peft", reason="an extra: pip install peft")

RUN: dict[str, Any] = {"ema": 0.9, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}


def adapted(seed: int = 0, base_seed: int = 0, **options: Any) -> Any:
    base = small_model(seed=base_seed, hidden_dropout=0.1)
    torch.manual_seed(seed)
    settings = {"target_modules": ["qkv", "mlp.input"], "r": 2, "lora_dropout": 0.1}
    return peft.get_peft_model(base, peft.LoraConfig(**settings | options))


def run(folder: Path, model: Any = None, **more: Any) -> GMTrainer:
    return small_trainer(folder, rows(24), model or adapted(), **RUN | more)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> GMTrainer:
    trainer = run(tmp_path_factory.mktemp("unbroken"))
    trainer.train()
    return trainer


def test_adapter__resumed_is_unbroken(tmp_path: Path, unbroken: GMTrainer) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[Interrupt(after=4)]).train()
    resumed = run(tmp_path, adapted(seed=7))  # its own adapter must not matter
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    for name in ("adapter_model.safetensors", "ema-0.safetensors"):
        files = [checkpoint(folder, 6) / name for folder in (tmp_path, unbroken.args.output_dir or "")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_adapter__checkpoint_holds_the_adapter_alone_and_the_config(unbroken: GMTrainer) -> None:
    folder = checkpoint(unbroken.args.output_dir or "", 6)
    assert not (folder / "model.safetensors").exists()
    assert all("lora" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert (folder / "config.json").exists()


def test_adapter__evaluates_and_publishes_its_average(tmp_path: Path, unbroken: GMTrainer) -> None:
    unbroken.eval_dataset = rows(4, seed=1)
    expected = unbroken.bound()
    unbroken.save_model(str(tmp_path))
    assert unbroken.ema is not None
    average = {name.replace(".default", ""): value for name, value in unbroken.ema.average.items()}
    torch.testing.assert_close(load_file(tmp_path / "adapter_model.safetensors"), average, rtol=0, atol=0)
    loaded = peft.PeftModel.from_pretrained(small_model(hidden_dropout=0.1), str(tmp_path))
    again = small_trainer(tmp_path / "again", model=loaded, eval_dataset=unbroken.eval_dataset)
    torch.testing.assert_close(again.bound().nats, expected.nats)


def test_adapter__of_another_model_or_kind_is_refused(unbroken: GMTrainer) -> None:
    folder = str(unbroken.args.output_dir)
    cases: dict[str, Any] = {
        r"num_hidden_layers is 1, here 2": peft.get_peft_model(
            small_model(num_hidden_layers=2, hidden_dropout=0.1), adapted().peft_config["default"]
        ),
        r"path is .*'vocab_size': 8.*here .*'vocab_size': 9": peft.get_peft_model(
            small_model(MaskedPath(len(TOKENIZER) + 1), hidden_dropout=0.1), adapted().peft_config["default"]
        ),
        "r=2, .* has 4": adapted(r=4),
        "lora_alpha=8, .* has 16": adapted(lora_alpha=16),
        "target_modules=.* has .*qkv": adapted(target_modules=["qkv"]),
        "checkpoint-6 holds an adapter, and the model has none": small_model(hidden_dropout=0.1),
    }
    for message, model in cases.items():
        trainer = small_trainer(folder, model=model, tokenizer=None, **RUN | {"max_steps": 8})
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=True)


def test_adapter__is_not_resumed_from_a_whole_model(tmp_path: Path) -> None:
    small_trainer(tmp_path, model=small_model(hidden_dropout=0.1), **RUN).train()
    with pytest.raises(ValueError, match=r"checkpoint-6 holds a whole model"):
        run(tmp_path, max_steps=8).train(resume_from_checkpoint=True)


def test_adapter__inside_the_model_is_refused(tmp_path: Path) -> None:
    model = small_model()
    model.add_adapter(peft.LoraConfig(target_modules=["qkv"]))
    with pytest.raises(ValueError, match=r"add_adapter.*get_peft_model"):
        small_trainer(tmp_path, model=model)


def test_adapter__frozen_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    frozen = checkpointed.frozen_crc32
    monkeypatch.setattr(checkpointed, "frozen_crc32", lambda model: calls.append(model) or frozen(model))
    trainer = run(tmp_path, save_steps=2)
    trainer.train()
    assert len(calls) == 1
    for folder in tmp_path.glob("checkpoint-*"):
        assert json.loads((folder / FROZEN).read_text(encoding="utf-8")) == {"crc32": frozen(trainer.model)}


def test_adapter__another_frozen_model_is_named(tmp_path: Path, unbroken: GMTrainer) -> None:
    other = small_trainer(str(unbroken.args.output_dir), model=adapted(base_seed=1), tokenizer=None, **RUN)
    with pytest.warns(UserWarning, match=r"frozen weights .*checkpoint-6"):
        other.train(resume_from_checkpoint=True)
    assert isinstance(other._unwrapped, GMModel)


def test_add_lora__adapts_all_linear_layers_of_the_transformer() -> None:
    """The function of the model is unchanged at first, and the head is not adapted."""
    model = small_model()
    tokens, time = torch.tensor([[0, 1, 7, 2]]), torch.ones(1)
    expected = model(input_ids=tokens, time=time).logits
    adapted = add_lora(model, rank=2)
    assert torch.equal(adapted(input_ids=tokens, time=time).logits, expected)
    trained = {name.partition(".lora_")[0] for name, weight in adapted.named_parameters() if weight.requires_grad}
    inner = {name for name, module in model.backbone.layers.named_modules() if hasattr(module, "lora_A")}
    assert trained == {f"base_model.model.backbone.layers.{name}" for name in inner}
    assert len(inner) == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"targets": ["qkv", "q_proj", "v_proj"]}, r"'q_proj', 'v_proj', which no .*attention\.qkv, .*mlp\.input"),
        ({"targets": ["kv"]}, "'kv', which no"),
        ({"rank": 0}, "rank=0"),
    ],
)
def test_add_lora__targets_that_match_nothing_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        add_lora(small_model(), **options)


@pytest.mark.parametrize("use", [add_lora, lambda model: load_adapter(model, "none")])
def test_adapter__is_for_a_model_without_one(use: Any) -> None:
    adapted = add_lora(small_model(), rank=2)
    before = adapted.peft_config["default"].to_dict()
    with pytest.raises(ValueError, match="model has an adapter already"):
        use(adapted)
    assert adapted.peft_config["default"].to_dict() == before
    with pytest.raises(TypeError, match="model is a Linear"):
        use(torch.nn.Linear(2, 2))


def test_add_lora__targets_are_a_list() -> None:
    with pytest.raises(TypeError, match=r"targets='qkv'.*\['qkv'\]"):
        add_lora(small_model(), targets="qkv")


def test_load_adapter__loads_what_the_trainer_publishes(tmp_path: Path) -> None:
    model = add_lora(small_model(), rank=2)
    trainer = run(tmp_path, model)
    trainer.train()
    trainer.save_model(str(tmp_path / "published"))
    tokens, time = torch.tensor([[0, 1, 7, 2]]), torch.ones(1)
    with trainer.averaged_weights():
        expected = model(input_ids=tokens, time=time).logits
    assert "load_adapter" in (tmp_path / "published" / "README.md").read_text(encoding="utf-8")
    loaded = load_adapter(small_model(), tmp_path / "published")
    torch.testing.assert_close(loaded(input_ids=tokens, time=time).logits, expected)
    merged: Any = loaded.merge_and_unload()
    assert isinstance(merged, GMModel)
    torch.testing.assert_close(merged(input_ids=tokens, time=time).logits, expected)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_load_adapter__refuses_files_that_are_missing_or_truncated(name: str, tmp_path: Path) -> None:
    add_lora(small_model(), rank=2).save_pretrained(str(tmp_path))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{tmp_path} holds a damaged adapter"):
        load_adapter(small_model(), tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} holds no adapter, as it has no {name}"):
        load_adapter(small_model(), tmp_path)


def test_load_adapter__of_another_model_is_refused(tmp_path: Path) -> None:
    add_lora(small_model(), rank=2).save_pretrained(str(tmp_path))  # by PEFT alone, without the config of the model
    cases: dict[str, Any] = {
        "does not fit the model.*trained on .*size mismatch": small_model(hidden_size=32),
        r"backbone\.layers\..* is in one and not in the other": small_model(num_hidden_layers=2),
    }
    for message, model in cases.items():
        with pytest.raises(ValueError, match=message):
            load_adapter(model, tmp_path)
    describe_base(add_lora(small_model(), rank=2), tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another model: its path is .*'vocab_size': 8"):
        load_adapter(small_model(MaskedPath(len(TOKENIZER) + 1)), tmp_path)
    with pytest.raises(ValueError, match=r"holds no adapter, as it has no adapter_config\.json"):
        load_adapter(small_model(), tmp_path / "none")
