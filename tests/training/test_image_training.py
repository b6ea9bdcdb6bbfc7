"""`GMTrainer` on images: continuous and discrete, by class, resumed, evaluated by part, and in two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gm_discrete import GMModel, UniformTimeSampler
from gm_discrete.data import ImageCollator
from gm_discrete.evaluation import evaluate_matching
from gm_discrete.objective import corrupt, field_divergences
from tests.helpers import forks
from tests.helpers.small_images import LEVELS, PATHS, picture_model, picture_trainer, pictures
from tests.helpers.small_run import Interrupt, checkpoint, losses, record_inputs, weights
from tests.helpers.two_equal_processes import RUNS, train_images

pytestmark = pytest.mark.slow
NUMBERS = ["flow", "flow and jump", "mixture"]
every_path = pytest.mark.parametrize("name", PATHS)


@every_path
def test_image_training__lowers_the_loss(tmp_path: Path, name: str) -> None:
    """Held-out loss on images of the same distribution before and after 40 steps, with the same noise."""
    trainer = picture_trainer(
        tmp_path, name, max_steps=40, per_device_train_batch_size=8, data=pictures(64), eval_dataset=pictures(32, 1),
        time_sampler=UniformTimeSampler(), learning_rate=1e-2,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.95 * before


@every_path
def test_image_training__evaluation_metrics(tmp_path: Path, name: str) -> None:
    """For discrete images the bound, in bits per pixel; for continuous ones the loss, in all and by part."""
    trainer = picture_trainer(tmp_path, name, eval_dataset=pictures(6, 1))
    metrics = trainer.evaluate()
    assert trainer.evaluate() == metrics
    if name not in NUMBERS:
        assert metrics.keys() - {"epoch"} == {
            "eval_loss",
            "eval_bits_per_token",
            "eval_bits_per_token_stderr",
            "eval_perplexity",
        }
        assert metrics["eval_bits_per_token"] == pytest.approx(metrics["eval_loss"] / math.log(2))
        assert trainer.bound().num_tokens.tolist() == [16] * 6
        return
    parts = {f"eval_{part}" for part in trainer.model.path.default_divergence}  # type: ignore[union-attr]
    assert metrics.keys() - {"epoch"} == {"eval_loss"} | parts
    assert metrics["eval_loss"] == pytest.approx(sum(metrics[part] for part in parts))
    weighed = picture_trainer(
        tmp_path, model=picture_model(name, loss_weights={"flow": 3.0}), eval_dataset=pictures(6, 1)
    ).evaluate()
    expected = sum((3 if part == "eval_flow" else 1) * metrics[part] for part in parts)
    assert weighed["eval_loss"] == pytest.approx(expected)


def test_evaluate_matching__is_the_mean_of_its_draws() -> None:
    """One batch, two draws, from the noise of one generator; by class; the model comes back to its mode."""
    model = picture_model().train()
    batch = ImageCollator()(list(pictures(6)))
    found = evaluate_matching(model, [batch], num_samples=2, rng=torch.Generator().manual_seed(3))
    assert model.training
    rng, z, everything = torch.Generator().manual_seed(3), batch["labels"], torch.ones_like(batch["labels"]).bool()
    totals = {"flow": 0.0, "jump": 0.0}
    model.eval()
    with torch.no_grad():
        for _ in range(2):
            x, t = corrupt(model.path, {"": z}, {"": everything}, rng, UniformTimeSampler())
            generator = model.generator(x[""], t, class_labels=batch["class_labels"])
            kinds = model.config.divergence
            parts = field_divergences(model.path, {"": generator}, {"": z}, x, t, {"": everything}, kinds)[""]  # type: ignore[dict-item]
            totals = {name: total + float(parts[name].mean()) / 2 for name, total in totals.items()}
    assert found == pytest.approx({"loss": sum(totals.values()), **totals}, rel=1e-5)
    with pytest.raises(ValueError, match="dataloader "):
        evaluate_matching(model, [])


@pytest.mark.parametrize("name", ["flow and jump", "masked"])
def test_image_training__some_classes_are_dropped(tmp_path: Path, name: str) -> None:
    """25 % of 32 labels a step, 20 steps: 640 labels, a standard error of 0.017."""
    model = picture_model(name)
    calls = record_inputs(model)
    picture_trainer(tmp_path, name, model, max_steps=20, per_device_train_batch_size=32, data=pictures(64)).train()
    assert all(call["class_labels"].shape == (32,) for call in calls)
    labels = torch.cat([call["class_labels"] for call in calls])
    assert set(labels.tolist()) == {-1, 0, 1}
    assert abs(float((labels < 0).float().mean()) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 640)
    for call in calls:  # those that are left are those of their images, whose bright half shows the class
        clean = call["labels"].view(-1, 4, 4).float()
        right = (clean[:, :, 2:].sum((1, 2)) > clean[:, :, :2].sum((1, 2))).long()
        known = call["class_labels"] >= 0
        assert torch.equal(call["class_labels"][known], right[known])


def test_image_training__without_classes(tmp_path: Path) -> None:
    trainer = picture_trainer(
        tmp_path, model=picture_model(num_classes=0), data=pictures(classes=False), eval_dataset=pictures(4, 1)
    )
    trainer.train()
    assert len(losses(trainer)) == 4
    assert math.isfinite(trainer.evaluate()["eval_loss"])  # of images that have classes, which are not passed to it


def test_image_training__default_collator(tmp_path: Path) -> None:
    trainer = picture_trainer(tmp_path, data_collator=None)
    assert isinstance(trainer.data_collator, ImageCollator)
    assert trainer.data_collator.levels is None


CASES: dict[str, dict[str, Any]] = {
    "flow and jump": {},
    "mixture": {"muon": True},
    "masked": {"ema": 0.9},
    "flow": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_image_training__resumed_is_unbroken(tmp_path: Path, name: str) -> None:
    """Losses, weights and average, bit for bit; dropout of units and of classes included."""
    case = CASES[name] | {"save_strategy": "steps", "max_steps": 8, "save_steps": 3}

    def start(folder: str, seed: int = 0, **more: Any) -> Any:
        return picture_trainer(tmp_path / folder, name, picture_model(name, seed, hidden_dropout=0.2), **case, **more)

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


def test_image_training__a_saved_model_samples_by_class(tmp_path: Path) -> None:
    trainer = picture_trainer(tmp_path, "masked", ema=0.5)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    sample = GMModel.from_pretrained(tmp_path / "model").generate(class_labels=[0, 1], num_steps=4, seed=0)
    assert sample.shape == (2, 1, 4, 4)  # type: ignore[union-attr]
    assert int(sample.max()) < LEVELS  # type: ignore[union-attr]


# ---- two processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    forks.start("two_equal_processes", folder, "images", processes=2)
    return folder


@pytest.mark.parametrize("name", RUNS["images"][1])
def test_image_training__two_processes_are_one(folder: Path, tmp_path: Path, name: str) -> None:
    """Sums of float32 taken in another order differ by 1e-7 of their size, and by at most 10 times that a step (see
    `test_two_processes.py`); other noise, or other classes left out, moves the losses by 1e-1."""
    alone = train_images(tmp_path, name, world_size=1)
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
