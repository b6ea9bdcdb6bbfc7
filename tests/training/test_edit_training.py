"""`GMTrainer` on strings: learning, evaluation, resuming, accumulation, bfloat16, and two processes, sharded or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from gm_discrete import EditPath, GMModel, UniformTimeSampler
from gm_discrete.data import TokenCollator
from gm_discrete.evaluation import evaluate_matching
from gm_discrete.objective import align_strings, corrupt
from gm_discrete.training import add_lora, load_adapter
from tests.helpers import forks
from tests.helpers.backbones import to_train
from tests.helpers.small_run import (
    TOKENIZER,
    Interrupt,
    Recorder,
    checkpoint,
    losses,
    record_inputs,
    small_model,
    weights,
)
from tests.helpers.small_strings import PATHS, string_model, string_trainer, words
from tests.helpers.two_equal_processes import RUNS, train_strings

pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("name", ["empty", "uniform"])
every_path = pytest.mark.parametrize("name", PATHS)
BLANK: Any = TOKENIZER.pad_token_id


def matching(model: GMModel, data: Dataset, draws: int = 4) -> float:
    """The loss of held-out strings, with the same noise every time."""
    collate = TokenCollator(BLANK)
    batches = [collate(list(data)[i : i + 20]) for i in range(0, len(data), 20)]
    return evaluate_matching(model, batches, num_samples=draws, rng=torch.Generator().manual_seed(7))["loss"]


# ---- Learning and evaluation


def repeats(count: int, seed: int) -> Dataset:
    """a b a b … or c d c d …, of 2 to 6 symbols."""
    rng = torch.Generator().manual_seed(seed)
    sizes, kinds = torch.randint(2, 7, (count,), generator=rng), torch.randint(2, (count,), generator=rng)
    return Dataset.from_dict(
        {"input_ids": [[2 * int(kind) + i % 2 for i in range(int(n))] for n, kind in zip(sizes, kinds, strict=True)]}
    )


@both
def test_edit_training__lowers_the_loss(tmp_path: Path, name: str) -> None:
    """Held-out, before and after 80 steps with the same noise."""
    model, held_out = string_model(name, hidden_size=32, num_hidden_layers=2), repeats(40, 1)
    trainer = string_trainer(
        tmp_path, name, model, data=repeats(256, 0), max_steps=80, per_device_train_batch_size=16, eval_dataset=held_out
    )
    before = matching(model, held_out)
    trainer.train()
    assert matching(model, held_out) < 0.7 * before


@every_path
def test_evaluate_matching__of_strings_is_the_mean_of_its_draws(name: str) -> None:
    """Per symbol of the data, over batches of which some have more of them than others."""
    model, examples, collate = string_model(name).eval(), list(words(12)), TokenCollator(BLANK)
    batches = [collate(examples[:5]), collate(examples[5:])]
    found = evaluate_matching(model, batches, num_samples=3, rng=torch.Generator().manual_seed(3))
    rng, total, count = torch.Generator().manual_seed(3), 0.0, 0
    with torch.no_grad():
        for batch in batches:
            z, scored = {"": torch.where(batch["labels"] < 0, BLANK, batch["labels"])}, {"": batch["labels"] >= 0}
            for _ in range(3):
                data, chosen, x_0 = align_strings(model.path, z, scored, None, rng)
                x, t = corrupt(model.path, data, chosen, rng, UniformTimeSampler(), x_0=x_0)
                labels = model.path.mask_labels(data[""], chosen[""])
                total += float(model(input_ids=x[""], time=t, labels=labels, num_items_in_batch=1.0).loss)
                count += int(scored[""].sum())
    assert found == {"loss": pytest.approx(total / count, rel=1e-5), "jump": pytest.approx(total / count, rel=1e-5)}


@both
def test_edit_training__evaluates_while_it_trains(tmp_path: Path, name: str) -> None:
    trainer = string_trainer(
        tmp_path, name, eval_dataset=words(6, 1), eval_strategy="steps", eval_steps=2, ema=0.9, num_eval_samples=2
    )
    trainer.train()
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(found) == 2
    assert all(map(math.isfinite, found))
    assert trainer.evaluate() == trainer.evaluate()


# ---- One step


@every_path
def test_edit_training__accumulated_gradient_is_that_of_the_whole_batch(tmp_path: Path, name: str) -> None:
    """Three micro-steps of different widths, each divided by the symbols of the data in all of them."""
    model, recorder = string_model(name), Recorder()
    calls = record_inputs(model)
    string_trainer(
        tmp_path, name, model, max_steps=1, gradient_accumulation_steps=3, per_device_train_batch_size=2,
        callbacks=[recorder], max_grad_norm=0.0,
    ).train()  # fmt: skip
    assert len(calls) == 3
    counts = [int(((call["labels"] != BLANK) & (call["labels"] >= 0)).sum()) for call in calls]
    fresh, total = string_model(name), torch.zeros(())
    for call, count in zip(calls, counts, strict=True):
        assert int(call.pop("num_items_in_batch")) == sum(counts)
        total = total + fresh(**call).loss * count / sum(counts)
    total.backward()
    expected = {key: weight.grad for key, weight in fresh.named_parameters()}
    torch.testing.assert_close(recorder.gradients[0], expected, rtol=1e-4, atol=1e-6)


def test_edit_training__blanks_of_the_data_are_no_items(tmp_path: Path) -> None:
    """A data set that is padded already, without a mask, and the same strings as they are: losses and weights agree."""
    ragged = words(16)
    padded = [row + [BLANK] * (8 - len(row)) for row in ragged["input_ids"]]
    runs = []
    for kind, data in (("ragged", ragged), ("padded", Dataset.from_dict({"input_ids": padded}))):
        model = string_model("empty")
        calls = record_inputs(model)
        string_trainer(tmp_path / kind, "empty", model, data=data, train_sampling_strategy="sequential").train()
        runs.append([int(call["num_items_in_batch"]) for call in calls])
    assert runs[0] == runs[1]


def test_edit_training__sources_of_the_data_set_are_edited(tmp_path: Path) -> None:
    """Pairs of a string and its successor, of different lengths: padded with blanks in the columns of an example."""
    examples = [
        {"input_ids": [0, 1, 2, BLANK], "source_ids": [0, 2, 2, 3]},
        {"input_ids": [3, 3], "source_ids": [BLANK, 1]},
    ] * 4
    data = Dataset.from_list(examples)
    model = string_model("uniform")
    model.config.pad_token_id = None  # what pads is the blank all the same, and no symbol
    calls = record_inputs(model)
    trainer = string_trainer(tmp_path, "uniform", model, data=data, per_device_train_batch_size=8, max_steps=1)
    trainer.train()
    (call,) = calls
    z, strings = call["labels"], PATHS["uniform"].strings
    assert int(call["num_items_in_batch"]) == 4 * 5
    assert set(strings.lengths(torch.where(z < 0, BLANK, z)).tolist()) == {3, 2}
    allowed = {0: {0, 1, 2, 3}, 1: {1, 3}}  # symbols of source and data alone, whatever pads the batch
    for row, x in enumerate(call["input_ids"]):
        kind = 0 if int(strings.lengths(z)[row]) == 3 else 1
        assert set(x[x != BLANK].tolist()) <= allowed[kind]


@every_path
def test_edit_training__noise_depends_on_seed_and_step_alone(tmp_path: Path, name: str) -> None:
    """Alignments, sources, times and states: neither on the weights nor on dropout."""
    runs = []
    for seed, dropout in ((0, 0.0), (5, 0.5)):
        model = string_model(name, seed, hidden_dropout=dropout)
        runs.append(record_inputs(model))
        string_trainer(tmp_path / str(seed), name, model).train()
    for first, second in zip(*runs, strict=True):
        for part in ("time", "input_ids", "labels"):
            assert torch.equal(first[part], second[part])
    assert len({tuple(call["time"].tolist()) for call in runs[0]}) == 4


# ---- Runs


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("empty", {"ema": 0.9}),
        ("uniform", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("random", {"bf16": True, "muon": True}),
    ],
)
def test_edit_training__resumed_is_unbroken(tmp_path: Path, name: str, case: dict[str, Any]) -> None:
    case = case | {"save_strategy": "steps", "max_steps": 8, "save_steps": 3}

    def start(folder: str, seed: int = 0, **more: Any) -> Any:
        return string_trainer(tmp_path / folder, name, string_model(name, seed, hidden_dropout=0.2), **case, **more)

    unbroken = start("unbroken")
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        start("resumed", callbacks=[Interrupt(after=4)]).train()
    resumed = start("resumed", seed=9)  # its own weights must not matter
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    first, second = (checkpoint(tmp_path / folder, 8) for folder in ("resumed", "unbroken"))
    for file in first.glob("*.safetensors"):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_edit_training__another_prior_is_not_resumed(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    string_trainer(tmp_path, "uniform", **saving).train()
    other = EditPath(len(TOKENIZER), prior="uniform", lengths=[1, 1], blank_token_id=BLANK)
    with pytest.raises(ValueError, match=r"checkpoint-2 .*path "):
        string_trainer(tmp_path, model=small_model(other), **saving).train(resume_from_checkpoint=True)


@both
def test_edit_training__bfloat16_is_close_to_float32(tmp_path: Path, name: str) -> None:
    """The first loss, before any weight has changed, is the same within 5 %, for a precision of 2⁻⁸; all are finite."""
    runs = {}
    for bf16 in (False, True):
        trainer = string_trainer(tmp_path / str(bf16), name, bf16=bf16, gradient_checkpointing=bf16)
        trainer.train()
        runs[bf16] = losses(trainer)
        assert all(map(math.isfinite, runs[bf16]))
        assert all(bool(weight.isfinite().all()) for weight in weights(trainer.model).values())
    assert runs[True][0] == pytest.approx(runs[False][0], rel=0.05)
    assert runs[True] != runs[False]


def test_edit_training__a_loss_of_nan_stops_it(tmp_path: Path) -> None:
    model = string_model()
    with torch.no_grad():
        model.heads["edits"].bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        string_trainer(tmp_path, model=model).train()


@pytest.mark.parametrize("backbone", ["llama", "bert"])
@both
def test_edit_training__networks_of_transformers_learn_with_and_without_an_adapter(
    tmp_path: Path, name: str, backbone: str
) -> None:
    """The heads that language models lack are trained beside the adapter, and published with it."""
    held_out = repeats(20, 1)
    for kind in ("whole", "adapter"):
        model: Any = to_train(backbone, path=PATHS[name])
        before = matching(model, held_out)
        trained = model if kind == "whole" else add_lora(model, rank=4)
        run = string_trainer(
            tmp_path / kind, name, trained, data=repeats(128, 0), max_steps=15, per_device_train_batch_size=16
        )
        run.train()
        after = matching(model, held_out)
        assert after < 0.8 * before
        if kind == "adapter":
            run.save_model(str(tmp_path / "published"))
            again = load_adapter(to_train(backbone, path=PATHS[name]), tmp_path / "published")
            assert matching(again.get_base_model(), held_out) == pytest.approx(after, rel=1e-5)  # type: ignore[arg-type]


# ---- Two processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    forks.start("two_equal_processes", folder, "strings", processes=2)
    return folder


def record(folder: Path, rank: int) -> dict[str, Any]:
    file = folder / f"record-{rank}.json"
    assert file.exists(), (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUNS["strings"][1])
def test_edit_training__two_processes_are_one(folder: Path, tmp_path: Path, name: str) -> None:
    """Tolerances as in test_two_processes.py. Their batches have different widths, before and after alignment."""
    alone = train_strings(tmp_path, name, world_size=1)
    for rank in range(2):
        found = record(folder, rank)
        assert name in found, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        assert found[name]["losses"] == pytest.approx(losses(alone), rel=1e-5)
        torch.testing.assert_close(
            load_file(folder / f"{name}-{rank}.safetensors"), weights(alone.model), rtol=0, atol=2e-5
        )
    first, second = (record(folder, rank)[name]["metrics"] for rank in range(2))
    assert first[0] == first[1] == second[0]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    forks.start("sharded_strings", folder, processes=2)
    return folder


@both
def test_edit_training__sharded_is_one(sharded: Path, tmp_path: Path, name: str) -> None:
    """Weights that FSDP 2 has spread over two processes: losses, averages as they are published, and the fused operation."""
    from tests.helpers.sharded_strings import trainer

    alone = trainer(tmp_path, name, 4)
    alone.train()
    for rank in range(2):
        found = record(sharded, rank)[name]
        assert found["losses"] == pytest.approx(losses(alone), rel=1e-5)
        assert found["sums"] == ["FSDPLinear"] * len(found["losses"])
        assert 0.3 < found["share"] < 0.7
        assert math.isfinite(found["eval_loss"])
    published = GMModel.from_pretrained(sharded / name / "published")
    assert alone.ema is not None
    torch.testing.assert_close(weights(published), alone.ema.average, rtol=0, atol=2e-5)
