"""recipes/sft.py, and recipes/text.py from a pretrained model: what they write, how they resume, what they refuse."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, TrainingArguments, pipeline

from gm_discrete import GMModel
from gm_discrete.training import load_adapter
from tests.helpers import forks
from tests.helpers.chats import PLAIN_TEMPLATE, chat_tokenizer, pairs, tiny_llama, write_rows
from tests.helpers.recipe_configs import configs
from tests.helpers.sft_runs import flags, sft, sources

peft = pytest.importorskip("peft", reason="an extra: pip install peft")


@pytest.fixture(scope="module")
def made(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A language model and conversations."""
    return sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def adapted(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with adapters has written."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    sft({**made, "lora_rank": 2, "output_dir": folder})
    return folder


def logits(model: Any) -> Tensor:
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        return model.eval()(input_ids=tokens, time=torch.ones(1)).logits[..., :40]


def test_sft_recipe__writes_adapter_metrics_and_answers(adapted: Path) -> None:
    names = {file.name for file in adapted.iterdir() if file.is_file()}
    expected = {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json", "chat_template.jinja",
        "curve.png", "metrics.json", "run.json", "sample.txt", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert names == expected
    metrics = json.loads((adapted / "metrics.json").read_text(encoding="utf-8"))
    assert 0 < metrics["bits_per_completion_token"] < 20
    assert metrics["bits_per_completion_token_stderr"] > 0
    assert (metrics["examples"], metrics["dynamics"], metrics["rows"]["training"]["examples"]) == (4, "masked", 20)
    answers = (adapted / "sample.txt").read_text(encoding="utf-8")
    assert answers.startswith("user: say ")
    assert "[MASK]" not in answers


def test_sft_recipe__an_adapter_loads_by_itself_and_on_its_base(adapted: Path) -> None:
    """It changes the model, has the averaged weights, and samples; pipelines find the tokenizer."""
    assert len(pipeline("fill-mask", model=str(adapted))("say [MASK]", top_k=1)) == 1
    base = GMModel.from_pretrained(adapted / "base")
    plain = logits(base)
    alone = AutoModel.from_pretrained(adapted)
    on_base = load_adapter(base, adapted)
    torch.testing.assert_close(logits(alone), logits(on_base))
    assert (logits(alone) - plain).abs().max() > 1e-4
    average = load_file(adapted / "checkpoint-4" / "ema-0.safetensors")
    saved = load_file(adapted / "adapter_model.safetensors")
    assert average.keys() == {name.replace(".weight", ".default.weight") for name in saved}
    for name, weight in saved.items():
        torch.testing.assert_close(average[name.replace(".weight", ".default.weight")], weight, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(adapted)
    sample = alone.generate(torch.tensor([[1, 2]]), max_new_tokens=4, num_steps=2)
    assert sample.shape == (1, 6)
    assert tokenizer.mask_token_id not in sample


def test_sft_recipe__resumed_is_unbroken(made: dict[str, Any], adapted: Path, tmp_path: Path) -> None:
    run = {**made, "lora_rank": 2, "output_dir": tmp_path / "run"}
    sft({**run, "max_steps": 2})
    sft(run)
    for file in ("adapter_model.safetensors", "checkpoint-4/ema-0.safetensors", "sample.txt"):
        assert (tmp_path / "run" / file).read_bytes() == (adapted / file).read_bytes(), file
    with pytest.raises(ValueError, match=r"started with max_eos=8, now it is 9"):
        sft({**run, "max_eos": 9})
    merged = sft({**run, "merge": True})  # the finished run, published in another form
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    torch.testing.assert_close(
        logits(AutoModel.from_pretrained(tmp_path / "run")),
        logits(AutoModel.from_pretrained(adapted)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert merged["bits_per_completion_token"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"packed": True},
        {"path": "uniform", "turns": "each", "prompts": ["say sea?"]},
        {"lora_rank": 2, "lora_targets": ["q_proj", "mlp.up_proj"], "merge": True, "path": "uniform"},
        {"gradient_checkpointing": True, "lora_rank": 2, "shift": False, "sampler": '{"type": "tau_leaping"}'},
        {"lora_rank": 2, "dtype": "bfloat16", "bf16": True, "merge": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_sft_recipe__trains_and_publishes(made: dict[str, Any], tmp_path: Path, options: dict[str, Any]) -> None:
    metrics = sft({**made, **options, "max_steps": 2, "output_dir": tmp_path / "run"})
    assert 0 < metrics["bits_per_completion_token"] < 30
    assert metrics["dynamics"] == ("reversal" if options.get("path") == "uniform" else "masked")
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert isinstance(model, GMModel)
    assert model.config.shift is options.get("shift", True)
    assert model.generate(length=5, num_steps=2).shape == (1, 5)
    assert (tmp_path / "run" / "base").exists() == (bool(options.get("lora_rank")) and not options.get("merge"))


@pytest.mark.slow
def test_sft_recipe__goes_on_from_its_own_model_with_pairs(made: dict[str, Any], adapted: Path, tmp_path: Path) -> None:
    """A `GMModel` is the base of its adapter itself, with its own tokenizer, whatever that pads with.

    It is not retrained with another path or shift.
    """
    tokenizer = AutoTokenizer.from_pretrained(adapted)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(adapted / "base")
    renamed = [{"question": row["prompt"], "answer": row["completion"]} for row in pairs(24)]
    run = {
        "backbone": adapted / "base", "data": write_rows(tmp_path / "pairs.jsonl", renamed), "lora_rank": 2,
        "prompt_column": "question", "completion_column": "answer", "output_dir": tmp_path / "run", "max_steps": 2,
    }  # fmt: skip
    sft(run)
    assert not (tmp_path / "run" / "base").exists()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run")) == len(tokenizer)
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text(encoding="utf-8"))[
        "base_model_name_or_path"
    ] == str(adapted / "base")
    assert " is \n---" in (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8")
    for options, match in (
        ({"path": "uniform"}, "path='uniform', and backbone="),
        ({"shift": False}, "shift=False, and backbone="),
        ({"model_options": '{"hidden_dropout": 0.1}'}, "model_options="),
    ):
        with pytest.raises(ValueError, match=match):
            sft({**run, **options, "output_dir": tmp_path / "other"})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backbone": None}, "backbone=None"),
        ({"data": None}, "data=None"),
        ({"lora_rank": 2, "lora_targets": ["q_proj", "qkv"]}, r"'qkv', which no .*self_attn.q_proj"),
        ({"lora_rank": 2, "load_in_4bit": True}, "load_in_4bit=True needs a GPU"),
        ({"merge": True}, "merge=True needs an adapter"),
        ({"lora_targets": ["q_proj"]}, r"lora_targets=\['q_proj'\] needs an adapter"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"chat_template": "no.jinja"}, "chat_template='no.jinja' is no file"),
        ({"backbone": "./no"}, "backbone='./no'"),
        ({"prompts": ["say §"]}, "prompt=.*§"),
        ({"length": 4}, "length=4: 0 examples"),
        ({"validation_size": 1}, "held out: 1 examples.*validation_size"),
        ({"turns": "last"}, "turns='last'"),
        ({"sampler": "fastest"}, "fastest"),
    ],
)
def test_sft_recipe__bad_arguments_are_named(
    made: dict[str, Any], tmp_path: Path, options: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = {name: value for name, value in {**made, **options}.items() if value is not None}
    with pytest.raises(ValueError, match=match):
        sft({**given, "output_dir": tmp_path / "run"})
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_sft_recipe__data_and_tokenizer_that_do_not_fit_are_named(made: dict[str, Any], tmp_path: Path) -> None:
    bare = tiny_llama(tmp_path / "bare", chat_tokenizer(None))
    run = {**made, "output_dir": tmp_path / "run", "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(ValueError, match="chat_template=None"):
        sft({**run, "backbone": bare})
    (tmp_path / "template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    sft({**run, "backbone": bare, "chat_template": tmp_path / "template.jinja", "output_dir": tmp_path / "given"})
    with pytest.raises(ValueError, match=r"tokenizer has 49 tokens, .*backbone 8 symbols"):
        sft({**run, "backbone": tiny_llama(tmp_path / "few", vocab_size=8)})
    with pytest.raises(ValueError, match=r"line 1 has text"):
        sft({**run, "data": write_rows(tmp_path / "texts.jsonl", [{"text": "a"}] * 9)})


@pytest.mark.parametrize("missing", ["peft", "bitsandbytes"])
def test_sft_recipe__packages_that_are_not_installed_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = importlib.import_module("recipes.pretrained")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    options = pretrained.BackboneArguments(backbone="x", lora_rank=2, load_in_4bit=True)
    with pytest.raises(ValueError, match=f"pip install {missing}"):
        pretrained.check_backbone(options)


@pytest.mark.parametrize("file", configs("sft"), ids=lambda file: file.stem)
def test_sft_recipe__a_config_has_known_arguments(file: Path) -> None:
    module = importlib.import_module("recipes.sft")
    options, training = module.parse_arguments(
        (module.SFTArguments, TrainingArguments), ["--config", str(file), "--bf16", "false"]
    )
    assert training.output_dir == f"runs/{file.stem}"
    assert options.packed


@pytest.fixture(scope="module")
def by_two(made: dict[str, Any]) -> Path:
    """What two processes have written, with whole weights on each, and with sharded ones."""
    folder = Path(made["backbone"]).parent
    forks.start("sft_runs", folder, processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_sft_recipe__two_processes_are_one(by_two: Path, adapted: Path, kind: str) -> None:
    file = by_two / kind / "adapter_model.safetensors"
    assert file.exists(), (by_two / "log.txt").read_text(encoding="utf-8")[-4000:]
    torch.testing.assert_close(load_file(file), load_file(adapted / file.name), rtol=0, atol=2e-5)
    metrics = json.loads((by_two / kind / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["examples"] == 4


@pytest.mark.slow
def test_text_recipe__goes_on_from_a_pretrained_model(
    recipe: ModuleType, made: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    texts = [json.loads(line)["text"].lower() for line in corpus.read_text(encoding="utf-8").splitlines()]
    write_rows(tmp_path / "text.jsonl", [{"text": text.replace(":", "")} for text in texts])
    run = {
        "backbone": made["backbone"], "data": tmp_path / "text.jsonl", "length": 16, "max_steps": 2, "num_steps": 2,
        "max_eval_sequences": 4, "num_eval_samples": 1, "per_device_train_batch_size": 2, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "dataloader_num_workers": 0, "output_dir": tmp_path / "run",
    }  # fmt: skip
    metrics = recipe.main(flags(run))
    assert 0 < metrics["bits_per_byte"] == metrics["bits_per_character"] < 20
    model = GMModel.from_pretrained(tmp_path / "run")
    original = AutoModelForCausalLM.from_pretrained(made["backbone"])
    difference = model.backbone.network.layers[0].mlp.up_proj.weight - original.model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr]
    assert 0 < difference.abs().max() < 1e-3
    uniform = {**run, "path": "uniform", "shift": False, "lora_rank": 2, "merge": True, "prompt": "a_b"}
    metrics = recipe.main(flags({**uniform, "output_dir": tmp_path / "uniform"}))
    assert metrics["dynamics"] == "reversal"
    loaded = GMModel.from_pretrained(tmp_path / "uniform")
    assert loaded.config.shift is False
    assert "[MASK]" not in (tmp_path / "uniform" / "sample.txt").read_text(encoding="utf-8")
    for options, match in (
        ({"hidden_size": 8}, "hidden_size=8 has no effect"),
        ({"tokenizer": "bpe"}, "tokenizer='bpe' has no effect"),
        ({"backbone": "./no"}, "backbone='./no'"),
    ):
        with pytest.raises(ValueError, match=match):
            recipe.main(flags({**run, **options, "output_dir": tmp_path / "other"}))
    for options, match in (
        ({"path": "unigram"}, "path=MixturePath.*, and backbone=.* was trained with UniformPath"),
        ({"path": "uniform", "schedule": "cosine"}, "schedule='cosine' has no effect"),
        ({"path": "uniform", "rates": "mixture"}, "rates='mixture' has no effect"),
    ):
        with pytest.raises(ValueError, match=match):
            recipe.main(flags({**run, **options, "backbone": tmp_path / "uniform", "output_dir": tmp_path / "other"}))
    with pytest.raises(ValueError, match="shift=True needs a pretrained model"):
        recipe.main(["--shift", "true", "--output_dir", str(tmp_path / "other")])
