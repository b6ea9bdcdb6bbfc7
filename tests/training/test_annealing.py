"""Annealing of attention: what each step attends to, what evaluation does, and that resumed is unbroken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gm_discrete.training import CausalAnnealing
from tests.helpers.backbones import to_train
from tests.helpers.small_run import STABLE, Interrupt, checkpoint, losses, rows, small_model, small_trainer

RUN: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **STABLE}


def run(folder: Path, steps: Any = 4, model: Any = None, **more: Any) -> Any:
    callbacks = [*([] if steps is None else [CausalAnnealing(steps)]), *more.pop("callbacks", [])]
    return small_trainer(folder, model=model or to_train(), callbacks=callbacks, **RUN | more)


def shares(model: Any) -> dict[bool, list[float]]:
    """What the calls of the backbone will attend to, in training and in evaluation."""
    found: dict[bool, list[float]] = {True: [], False: []}
    model.backbone.register_forward_pre_hook(lambda module, _: found[module.training].append(module.ahead))
    return found


@pytest.mark.parametrize("steps", [4, 0.5])
def test_annealing__moves_from_causal_to_bidirectional_in_training_alone(tmp_path: Path, steps: Any) -> None:
    model = to_train()
    seen = shares(model)
    trainer = run(
        tmp_path, steps, model, eval_dataset=rows(2, seed=1), eval_strategy="steps", eval_steps=2, num_eval_samples=1,
        save_strategy="no", gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip
    trainer.train()
    expected = [0, 0.25, 0.5, 0.75, 1, 1] if steps == 4 else [0, 1 / 3, 2 / 3, 1, 1, 1]
    assert seen[True] == pytest.approx([share for share in expected for _ in range(2)])
    assert set(seen[False]) == {1.0}
    assert model.backbone.ahead == 1
    assert "ahead" not in " ".join(model.state_dict())


@pytest.mark.slow
def test_annealing__resumed_is_unbroken(tmp_path: Path) -> None:
    unbroken = run(tmp_path / "unbroken", ema=0.9)
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", ema=0.9, callbacks=[Interrupt(after=4)]).train()
    resumed = run(tmp_path / "resumed", ema=0.9, model=to_train(seed=9))
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    for name in ("model.safetensors", "ema-0.safetensors"):
        files = [checkpoint(tmp_path / kind, 6) / name for kind in ("unbroken", "resumed")]
        assert files[0].read_bytes() == files[1].read_bytes()
    plain = run(tmp_path / "plain", None)
    plain.train()
    assert losses(plain)[:4] != losses(unbroken)[:4]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: small_model(), "needs a decoder"),
        (lambda: to_train("bert"), "needs a decoder"),
        (lambda: to_train("qwen3", block_size=4), "block_size"),
        (lambda: _with_flex(), "attn_implementation='flex_attention'"),
    ],
    ids=["own", "encoder", "blocks", "flex"],
)
def test_annealing__refuses_other_models(tmp_path: Path, model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, model=model()).train()


def _with_flex() -> Any:
    model = to_train()
    model.config._attn_implementation_internal = "flex_attention"
    return model


@pytest.mark.parametrize(
    ("steps", "error"), [(0, ValueError), (-3, ValueError), (1.5, ValueError), (0.0, ValueError), ("4", TypeError)]
)
def test_annealing__names_a_wrong_number_of_steps(steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"steps={steps!r}"):
        CausalAnnealing(steps)
