"""Models with networks of transformers train as all others do: compiled, sharded, with averages, and with adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from gm_discrete import GMModel
from gm_discrete.training import MuonAdamW
from tests.helpers import forks
from tests.helpers.backbones import raw_logits, to_train
from tests.helpers.sharded_backbone import CASES, trainer
from tests.helpers.small_run import STABLE, Interrupt, checkpoint, losses, rows, small_trainer, weights

peft = pytest.importorskip("peft", reason="an extra: pip install peft")


@pytest.mark.parametrize("name", ["llama", "bert", "esm"])
def test_trainer__learns_evaluates_and_publishes(name: str, tmp_path: Path) -> None:
    model = to_train(name)
    run = small_trainer(
        tmp_path, rows(64), model, max_steps=20, eval_dataset=rows(8, seed=1), ema=0.5, gradient_checkpointing=True,
        num_eval_samples=4,
    )  # fmt: skip
    before = run.bound().bits_per_token
    run.train()
    assert run.bound().bits_per_token < before
    run.save_model(str(tmp_path / "final"))
    loaded: Any = AutoModel.from_pretrained(tmp_path / "final")
    assert run.ema is not None
    for key, weight in weights(loaded).items():
        torch.testing.assert_close(weight, run.ema.average[key])
    assert loaded.generate(num_steps=4).shape == (1, 8)


@pytest.mark.slow
def test_trainer__resumed_is_unbroken(tmp_path: Path) -> None:
    """With dropout inside the network of transformers, and in bfloat16."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "bf16": True}
    unbroken = small_trainer(tmp_path / "unbroken", model=dropped(), **saving)
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        small_trainer(tmp_path / "resumed", model=dropped(), callbacks=[Interrupt(after=3)], **saving).train()
    resumed = small_trainer(tmp_path / "resumed", model=dropped(seed=9), **saving)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    files = [checkpoint(tmp_path / kind, 4) / "model.safetensors" for kind in ("unbroken", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def dropped(seed: int = 1) -> Any:
    model = to_train("bert", seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model


# ---- Adapters


def adapted(seed: int = 1, **options: Any) -> Any:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "r": 2, "init_lora_weights": False}
    return peft.get_peft_model(to_train(**options), peft.LoraConfig(**settings))


@pytest.mark.parametrize("path", ["masked", "uniform"])
def test_adapter__trains_is_saved_loaded_and_merged(path: str, tmp_path: Path) -> None:
    model = adapted(path=path)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora" in name for name in before)
    assert len(before) == 12  # two matrices for two projections of three layers
    run = small_trainer(tmp_path, model=model, max_steps=2, **STABLE)
    run.train()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    assert not any(torch.equal(after[name], weight) for name, weight in before.items())
    run.save_model(str(tmp_path / "adapter"))
    assert all("lora" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    x = torch.tensor([[0, 1, 7, 2, 7]])
    expected = raw_logits(model.eval().get_base_model(), x)
    loaded = peft.PeftModel.from_pretrained(to_train(path=path), tmp_path / "adapter")
    torch.testing.assert_close(raw_logits(loaded.eval().get_base_model(), x), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is GMModel
    torch.testing.assert_close(raw_logits(merged, x), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again: Any = AutoModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(raw_logits(again, x), raw_logits(merged, x))
    assert merged.generate(x, max_new_tokens=2, num_steps=2).shape == (1, 7)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_muon_adamw__takes_the_matrices_in_the_layers_of_a_network(name: str) -> None:
    """Whatever transformers calls them: those of BERT are in `encoder.layer`."""
    model: Any = to_train(name)
    muon = MuonAdamW(model).parts["muon"].param_groups[0]["params"]
    layers = model.backbone.layers
    assert len(muon) == len(layers) * {"llama": 7, "bert": 6}[name]
    assert {id(weight) for weight in muon} == {id(weight) for weight in layers.parameters() if weight.dim() == 2}


# ---- Two processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("sharded")
    forks.start("sharded_backbone", folder, processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_sharded__losses_bounds_and_averages_are_those_of_one_process(case: str, folder: Path, tmp_path: Path) -> None:
    alone: Any = trainer(tmp_path, case, 4)
    alone.train()
    for rank in range(2):
        file = folder / f"record-{rank}.json"
        assert file.exists(), (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        record = json.loads(file.read_text(encoding="utf-8"))[case]
        assert record["losses"] == pytest.approx(losses(alone), rel=1e-4)
        assert 0.3 < record["share"] < 0.7
        assert {name[:4] for name in record["layers"]} == {"FSDP"}  # each layer is gathered by itself
        assert record["bits"] == pytest.approx(alone.bound().bits_per_token, rel=0.2)
    published = GMModel.from_pretrained(folder / case / "published")
    torch.testing.assert_close(weights(published), alone.ema.average, rtol=0, atol=5e-5)
