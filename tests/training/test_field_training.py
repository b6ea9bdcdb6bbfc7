"""`GMTrainer` on states of several fields: resumed, accumulated, evaluated by field, in bfloat16, and in two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gm_discrete import GMModel, UniformTimeSampler
from gm_discrete.evaluation import evaluate_matching
from gm_discrete.generators.spaces import entries
from gm_discrete.objective import FieldTimeSampler, LogitNormalTimeSampler, corrupt, draw_times
from tests.helpers import forks
from tests.helpers.small_run import Interrupt, Recorder, checkpoint, losses, record_inputs, weights
from tests.helpers.small_tables import OPTIONS, PATHS, collate, rows, table_model, table_path, table_trainer
from tests.helpers.two_equal_processes import RUNS, train_fields

pytestmark = pytest.mark.slow
every_kind = pytest.mark.parametrize("name", PATHS)


@pytest.mark.parametrize("name", [name for name in PATHS if name != "turns"])  # tests/models/test_rotation_model.py
def test_field_training__lowers_the_loss(tmp_path: Path, name: str) -> None:
    """Held-out losses before and after 60 steps, with the same noise: in all, and of every field except a category of which
    a fifth is missing, together with prices of which a third are."""
    trainer = table_trainer(
        tmp_path, name, max_steps=60, per_device_train_batch_size=16, data=rows(name, 256),
        time_sampler=UniformTimeSampler(), eval_dataset=rows(name, 100, 1), per_device_eval_batch_size=100,
        learning_rate=1e-2,
    )  # fmt: skip
    before, _ = trainer.evaluate(), trainer.train()
    after = trainer.evaluate()
    learned = PATHS[name].factors.keys() - ({"cut"} if name in ("missing", "independent") else set())
    for field in learned:
        assert after[f"eval_{field}"] < 0.9 * before[f"eval_{field}"]
    assert after["eval_loss"] < 0.9 * before["eval_loss"]


@every_kind
def test_field_training__evaluation_names_every_field(tmp_path: Path, name: str) -> None:
    """The loss is their weighted sum; the noise is the same every time, and the model comes back to its mode."""
    trainer = table_trainer(tmp_path, name, eval_dataset=rows(name, 6, 1))
    trainer.model.train()  # type: ignore[union-attr]
    metrics = trainer.evaluate()
    assert trainer.evaluate() == metrics
    assert trainer.model.training  # type: ignore[union-attr]
    assert metrics.keys() - {"epoch"} == {"eval_loss", *(f"eval_{field}" for field in PATHS[name].factors)}
    weights = OPTIONS.get(name, {}).get("loss_weights", {})
    plain = {field: w for field, w in weights.items() if not isinstance(w, dict)}
    expected = sum(plain.get(field, 1.0) * metrics[f"eval_{field}"] for field in PATHS[name].factors)
    assert metrics["eval_loss"] == pytest.approx(expected)


@every_kind
def test_evaluate_matching__of_fields_is_the_mean_of_its_draws(name: str) -> None:
    """Per scored entry of each field, over batches of which some have more of them than others."""
    model = table_model(name).eval()
    trainer_collate: Any = table_trainer("/tmp", name).data_collator
    examples = list(rows(name, 12, 1))
    batches = [trainer_collate(examples[:5]), trainer_collate(examples[5:])]
    found = evaluate_matching(model, batches, num_samples=3, rng=torch.Generator().manual_seed(3))
    rng, sums, counts = torch.Generator().manual_seed(3), {}, {}
    with torch.no_grad():
        for batch in batches:
            labels = batch["labels"]
            scored = model.path.loss_mask(labels)
            z = {field: torch.where(scored[field], labels[field], batch["fields"][field]) for field in labels}
            given = {key: batch[key] for key in ("attention_mask", "class_labels") if key in batch}
            for _ in range(3):
                x, t = corrupt(model.path, z, scored, rng, UniformTimeSampler())
                output: Any = model(fields=x, time=t, labels=labels, **given)
                for field, loss in output.field_losses.items():
                    count = int(entries(scored[field], model.path.fields[field].space).sum())
                    sums[field] = sums.get(field, 0.0) + float(loss) * count
                    counts[field] = counts.get(field, 0) + count
    assert {field: found[field] for field in sums} == pytest.approx(
        {field: sums[field] / counts[field] for field in sums}, rel=1e-5
    )


@every_kind
def test_field_training__accumulated_gradient_is_that_of_the_whole_batch(tmp_path: Path, name: str) -> None:
    """Gradients summed over three micro-steps are those of the loss of all their rows, per scored entry of all of them.

    Rows of "missing" and "lines" have more entries in one micro-step than in another. Sums of float32 in another order.
    """
    model, recorder = table_model(name), Recorder()
    calls = record_inputs(model)
    table_trainer(
        tmp_path, name, model, max_steps=1, gradient_accumulation_steps=3, per_device_train_batch_size=2,
        callbacks=[recorder], max_grad_norm=0.0,
    ).train()  # fmt: skip
    assert len(calls) == 3
    fresh = table_model(name)
    losses_ = []
    counts = {
        field: sum(int(entries(fresh.path.loss_mask(call["labels"])[field], own.space).sum()) for call in calls)
        for field, own in fresh.path.fields.items()
    }  # type: ignore[index]
    for call in calls:
        assert {field: int(count) for field, count in call.pop("num_items_in_batch").items()} == counts
        output: Any = fresh(**call)
        scored = fresh.path.loss_mask(call["labels"])
        share = {
            field: entries(scored[field], own.space).sum() / counts[field] for field, own in fresh.path.fields.items()
        }
        again: Any = fresh(**call, num_items_in_batch=counts)
        losses_.append(again.loss)
        for field in counts:  # with the count of all
            torch.testing.assert_close(again.field_losses[field], output.field_losses[field] * share[field])
    total = torch.stack(losses_).sum()
    total.backward()
    expected = {key: weight.grad for key, weight in fresh.named_parameters()}
    torch.testing.assert_close(recorder.gradients[0], expected, rtol=1e-4, atol=1e-6)
    if name != "lines":  # whose micro-steps are of different lengths
        joined: dict[str, Any] = {
            "fields": stacked(calls, "fields"), "labels": stacked(calls, "labels"),
            "time": torch.cat([call["time"] for call in calls]),
        }  # fmt: skip
        if "class_labels" in calls[0]:
            joined["class_labels"] = torch.cat([call["class_labels"] for call in calls])
        torch.testing.assert_close(fresh(**joined).loss, total, rtol=1e-5, atol=0)


def stacked(calls: list[Any], part: str) -> dict[str, Tensor]:
    return {field: torch.cat([call[part][field] for call in calls]) for field in calls[0][part]}


CASES: dict[str, dict[str, Any]] = {
    "table": {"muon": True},
    "missing": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "independent": {"ema": 0.9},
    "lines": {"bf16": True},
    "turns": {"ema": 0.9},
}


@every_kind
def test_field_training__resumed_is_unbroken(tmp_path: Path, name: str) -> None:
    """Losses, weights and average, bit for bit; dropout of units and of classes included."""
    case = CASES[name] | {"save_strategy": "steps", "max_steps": 8, "save_steps": 3}

    def start(folder: str, seed: int = 0, **more: Any) -> Any:
        return table_trainer(tmp_path / folder, name, table_model(name, seed, hidden_dropout=0.2), **case, **more)

    unbroken = start("unbroken")
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        start("resumed", callbacks=[Interrupt(after=4)]).train()
    resumed = start("resumed", seed=9)  # its own weights must not matter
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    first, second = (checkpoint(tmp_path / folder, 8) for folder in ("resumed", "unbroken"))
    assert (first / "model.safetensors").exists()
    for file in first.glob("*.safetensors"):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_field_training__another_model_is_not_resumed(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    table_trainer(tmp_path, "table", **saving).train()
    other = table_trainer(tmp_path, "table", table_model("independent"), **saving)
    with pytest.raises(ValueError, match=r"checkpoint-2 .*path "):
        other.train(resume_from_checkpoint=True)


@every_kind
def test_field_training__bfloat16_is_close_to_float32(tmp_path: Path, name: str) -> None:
    """The first loss, before any weight has changed, is the same within 5 %, for a precision of 2⁻⁸; all are finite."""
    runs = {}
    for bf16 in (False, True):
        trainer = table_trainer(tmp_path / str(bf16), name, bf16=bf16, eval_dataset=rows(name, 6, 1))
        trainer.train()
        runs[bf16] = losses(trainer)
        assert all(map(math.isfinite, [*runs[bf16], *trainer.evaluate().values()]))
        assert all(bool(weight.isfinite().all()) for weight in weights(trainer.model).values())
        assert next(trainer.model.parameters()).dtype == torch.float32  # type: ignore[union-attr]
    assert runs[True][0] == pytest.approx(runs[False][0], rel=0.05)
    assert runs[True] != runs[False]


def test_field_training__a_saved_model_samples(tmp_path: Path) -> None:
    trainer = table_trainer(tmp_path, "independent", ema=0.5)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model = GMModel.from_pretrained(tmp_path / "model")
    sample: Any = model.generate(given={"price": [0.3, -0.2]}, class_labels=[0, 1], num_steps=4, seed=0)
    assert sample["price"].flatten().tolist() == pytest.approx([0.3, -0.2])
    assert sample["depth"].shape == (2, 1, 1)
    assert int(sample["cut"].max()) < 4


@every_kind
def test_field_training__noise_depends_on_seed_and_step_alone(tmp_path: Path, name: str) -> None:
    """Neither on the weights nor on the dropout, which draws from torch's own generator; every step has noise of its own."""
    runs = []
    for seed, dropout in ((0, 0.0), (5, 0.5)):
        model = table_model(name, seed, hidden_dropout=dropout)
        runs.append(record_inputs(model))
        table_trainer(tmp_path / str(seed), name, model).train()
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first["time"], second["time"])
        assert all(torch.equal(x, second["fields"][field]) for field, x in first["fields"].items())  # type: ignore[union-attr]
    assert len({tuple(call["time"].flatten().tolist()) for call in runs[0]}) == 4


def test_field_training__some_classes_are_dropped_and_labels_are_no_input(tmp_path: Path) -> None:
    """Missing entries of the input are those of `fields`, and the times are those of a `FieldTimeSampler`."""
    model = table_model("independent")
    calls = record_inputs(model)
    table_trainer(tmp_path, "independent", model, max_steps=30, per_device_train_batch_size=16).train()
    classes = torch.cat([call["class_labels"] for call in calls])
    assert set(classes.tolist()) == {-1, 0, 1}
    assert abs(float((classes < 0).double().mean()) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / len(classes))
    for call in calls:
        for field, labels in call["labels"].items():  # type: ignore[union-attr]
            missing = ~model.path.loss_mask({**call["labels"]})[field]  # type: ignore[dict-item]
            assert not call["fields"][field][missing].any()  # type: ignore[index]
            assert labels.shape == call["fields"][field].shape  # type: ignore[index]
    times = torch.cat([call["time"] for call in calls])
    given = (times == 1).double().mean(0)  # a third of the rows, one half of their fields
    assert bool(((given - 1 / 6).abs() < 4.5 * math.sqrt(5 / 36 / len(times))).all())


def test_field_training__needs_a_collator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_collator "):
        table_trainer(tmp_path, data_collator=None)
    assert collate([{"cut": 1, "price": 0.0, "depth": 0.0}])["fields"].keys() == table_path().factors.keys()


# ---- times of fields


def test_field_time_sampler__mixes_three_kinds() -> None:
    """30 000 rows: one time for all, one for all but the observed ones, and separate times; each with its distribution."""
    n, sampler = 30_000, FieldTimeSampler(LogitNormalTimeSampler(), shared=0.2, conditional=0.5)
    path = table_path(independent=True)
    t = draw_times(path, n, torch.Generator().manual_seed(1), torch.device("cpu"), sampler)
    assert t.shape == (n, 3)
    known, latest = t == 1, float(path.factors["price"].latest)
    kinds = known.sum(1)
    # known with a probability that is uniform: 0 to 3 of three with 1/4 each
    for count in (1, 2, 3):
        assert abs(float((kinds == count).double().mean()) - 0.125) < 4.5 * math.sqrt(0.125 * 0.875 / n)
    open_ = torch.where(known, torch.nan, t)
    one = (open_.nan_to_num(9).amin(1) == open_.nan_to_num(-9).amax(1)) & (kinds < 2)
    share = 0.2 + 0.5 * (1 / 4 + 1 / 4)
    assert abs(float(one.double().mean()) - share) < 4.5 * math.sqrt(share * (1 - share) / n)
    for column, last in zip(open_.unbind(1), (1.0, latest, latest), strict=True):
        part = column[~column.isnan()]
        assert float(part.max()) <= last
        # 0.001: a time of all fields ends with the first of them, at 0.99875
        assert abs(float((part < 0.5 * last).double().mean()) - 0.5) < 4.5 * math.sqrt(0.25 / len(part)) + 0.001
    for wrong in ({"shared": -0.1}, {"shared": 0.7, "conditional": 0.4}):
        with pytest.raises(ValueError, match=rf"shared={wrong['shared']}"):
            FieldTimeSampler(**wrong)  # type: ignore[arg-type]


# ---- two processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    forks.start("two_equal_processes", folder, "fields", processes=2)
    return folder


@pytest.mark.parametrize("name", RUNS["fields"][1])
def test_field_training__two_processes_are_one(folder: Path, tmp_path: Path, name: str) -> None:
    """Sums of float32 taken in another order differ by 1e-7 of their size, and by at most 10 times that a step (see
    `test_two_processes.py`); other noise, or another count of what is scored, moves the losses by 1e-1."""
    alone = train_fields(tmp_path, name, world_size=1)
    for rank in range(2):
        file = folder / f"record-{rank}.json"
        assert file.exists(), (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        record = json.loads(file.read_text(encoding="utf-8"))
        assert name in record, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        assert record[name]["losses"] == pytest.approx(losses(alone), rel=1e-5)
        torch.testing.assert_close(
            load_file(folder / f"{name}-{rank}.safetensors"), weights(alone.model), rtol=0, atol=2e-5
        )
    first, second = (
        json.loads((folder / f"record-{rank}.json").read_text(encoding="utf-8"))[name]["metrics"] for rank in range(2)
    )
    assert first[0] == first[1] == second[0]
    assert set(first[0]) - {"epoch"} == set(alone.evaluate()) - {"epoch"}
