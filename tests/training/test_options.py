"""What `GMTrainer` inherits from transformers' `Trainer`: each option works, or is refused with the reason."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from gm_discrete import GaussianPath, GMConfig, GMModel, MaskedPath, ProductPath, UniformPath
from gm_discrete.evaluation import evaluate_matching
from gm_discrete.training import GMTrainer, is_complete
from gm_discrete.training.options import set_defaults
from gm_discrete.training.trainer import _metric_names
from tests.helpers.small_run import LENGTH, Interrupt, checkpoint, losses, rows, small_model, small_trainer, weights

REFUSED: dict[str, Any] = {
    "label_smoothing_factor": 0.1, "include_for_metrics": ["inputs"], "batch_eval_metrics": True, "bf16_full_eval": True,
    "auto_find_batch_size": True, "neftune_noise_alpha": 5.0, "use_liger_kernel": True, "enable_jit_checkpoint": True,
    "do_predict": True, "resume_from_checkpoint": "checkpoint-2",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_trainer__refuses_training_arguments_that_cannot_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.*GMTrainer: "):
        small_trainer(tmp_path / "run", **{name: REFUSED[name]})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["fp16_full_eval", "deepspeed", "parallelism_config"])
def test_trainer__refuses_training_arguments_that_need_hardware(tmp_path: Path, name: str) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    setattr(args, name, {"an option": 1})
    with pytest.raises(ValueError, match=rf"{name}=.*GMTrainer: "):
        GMTrainer(small_model(), args)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_trainer__refuses_to_upload_checkpoints(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(ValueError, match=r"hub_strategy='(all_)?checkpoints?' "):
        small_trainer(tmp_path, push_to_hub=True, hub_strategy=strategy)


@pytest.mark.parametrize(
    "name", ["model_init", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"]
)
def test_trainer__refuses_functions_that_it_would_not_call(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} .*GMTrainer: "):
        GMTrainer(small_model(), TrainingArguments(str(tmp_path), use_cpu=True), **{name: print})


def test_trainer__names_a_network_that_is_no_model(tmp_path: Path) -> None:
    network: Any = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"model is a Linear, and must be a GMModel; .* loop around conditional_loss"):
        GMTrainer(network, TrainingArguments(str(tmp_path), use_cpu=True))


BEST: dict[str, Any] = {"save_strategy": "steps", "eval_strategy": "steps", "load_best_model_at_end": True}


@pytest.mark.parametrize("several", [False, True])
def test_trainer__refuses_a_best_metric_that_evaluation_does_not_produce(tmp_path: Path, several: bool) -> None:
    data: Any = {"a": rows(2), "b": rows(2)} if several else rows(2)
    wrong, right = ("loss", "b_perplexity") if several else ("accuracy", "perplexity")
    with pytest.raises(ValueError, match=rf"metric_for_best_model='{wrong}' .*eval_{right}"):
        small_trainer(tmp_path, eval_dataset=data, metric_for_best_model=wrong, **BEST)
    for name in (right, f"eval_{right}"):
        assert (
            f"eval_{right}" in small_trainer(tmp_path, eval_dataset=data, metric_for_best_model=name, **BEST).evaluate()
        )


def test_trainer__names_an_output_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=rf"output_dir='{tmp_path}/run' is a file"):
        small_trainer(tmp_path / "run")


@pytest.mark.parametrize(
    "path", [GaussianPath(), ProductPath({"a": MaskedPath(4), "b": UniformPath(3)})], ids=["one", "two"]
)
def test_metric_names__are_those_of_the_matching_loss(path: Any) -> None:
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    if "" in path.fields:
        batch: dict[str, Any] = {"input_values": torch.zeros(2, 4, 1), "labels": torch.zeros(2, 4, 1)}
    else:
        fields = {name: torch.zeros(2, 4, dtype=torch.long) for name in path.fields}
        batch = {"fields": fields, "labels": fields}
    assert set(evaluate_matching(model, [batch], num_samples=1)) == set(_metric_names(model))


def test_trainer__refuses_methods_that_cannot_work(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"predict .*GMTrainer.*evaluate"):
        trainer.predict(rows(2))
    with pytest.raises(ValueError, match=r"hyperparameter_search .*GMTrainer"):
        trainer.hyperparameter_search(n_trials=2)


def test_trainer__evaluation_depends_on_no_option_for_predictions(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_dataset": rows(7, lengths=(8, 3, 5)), "per_device_eval_batch_size": 2}
    expected = small_trainer(tmp_path, **options).evaluate()
    for name, value in {
        "prediction_loss_only": True, "eval_do_concat_batches": False, "eval_accumulation_steps": 1,
        "eval_use_gather_object": True, "label_names": ["labels"], "dataloader_drop_last": True,
    }.items():  # fmt: skip
        assert small_trainer(tmp_path, **options | {name: value}).evaluate() == expected, name


@pytest.mark.slow
def test_trainer__groups_by_length_and_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "train_sampling_strategy": "group_by_length", "save_strategy": "steps", "save_steps": 3, "max_steps": 6,
        "include_num_input_tokens_seen": "all",
    }  # fmt: skip
    data = rows(24, lengths=(8, 3, 5, 1))
    unbroken = small_trainer(tmp_path / "unbroken", data, **options)
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        small_trainer(tmp_path / "resumed", data, callbacks=[Interrupt(after=4)], **options).train()
    resumed = small_trainer(tmp_path / "resumed", data, small_model(seed=9), **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    assert resumed.state.num_input_tokens_seen == unbroken.state.num_input_tokens_seen > 0


@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_trainer__loads_the_best_model(tmp_path: Path, strategy: str) -> None:
    options: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": strategy, "save_steps": 2, "ema": 0.9,
        "load_best_model_at_end": True, "metric_for_best_model": "bits_per_token", "greater_is_better": False,
    }  # fmt: skip
    trainer = small_trainer(tmp_path, eval_dataset=rows(4, seed=1), **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert is_complete(best)
    bits = [entry["eval_bits_per_token"] for entry in trainer.state.log_history if "eval_bits_per_token" in entry]
    assert best == str(checkpoint(tmp_path, 2 * (1 + bits.index(min(bits)))))
    assert trainer.evaluate()["eval_bits_per_token"] == min(bits)


# Batches with nothing to learn


def answers(empty: tuple[int, ...], count: int = 16) -> Dataset:
    """Rows of which some are not scored at all."""
    ids = rows(count)["input_ids"]
    labels = [[-100] * LENGTH if i in empty else row for i, row in enumerate(ids)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def test_trainer__a_batch_with_nothing_to_learn_contributes_zero(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "train_sampling_strategy": "sequential",
    }
    trainer = small_trainer(tmp_path, answers((2, 3, 6, 7)), **options)
    trainer.train()
    found = losses(trainer)
    assert [loss == 0 for loss in found] == [False, True, False, True]
    assert all(math.isfinite(loss) for loss in found)
    assert all(bool(weight.isfinite().all()) for weight in weights(trainer.model).values())
    warnings = [str(warning.message) for warning in recwarn if "nothing to learn" in str(warning.message)]
    assert len(warnings) == 1
    assert "step 2 " in warnings[0]


def test_trainer__a_part_of_a_step_with_nothing_to_learn_changes_nothing(tmp_path: Path) -> None:
    """The gradient of a step is the sum over its parts, divided by the number of scored entries of them all."""
    model, gradients = small_model(), []
    options: dict[str, Any] = {
        "max_steps": 1,
        "train_sampling_strategy": "sequential",
        "gradient_accumulation_steps": 2,
    }
    trainer = small_trainer(tmp_path, answers((4, 5, 6, 7), 8), model, max_grad_norm=0.0, **options)
    step = trainer.training_step

    def recorded(*arguments: Any, **kinds: Any) -> Any:
        loss = step(*arguments, **kinds)
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
        return loss

    trainer.training_step = recorded
    trainer.train()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert any(bool(gradient.any()) for gradient in gradients[0].values())


@pytest.mark.parametrize("kind", ["some", "all"])
def test_trainer__evaluates_rows_with_nothing_to_score(tmp_path: Path, kind: str) -> None:
    held_out = answers((1, 2) if kind == "some" else (0, 1, 2, 3), 4)
    trainer = small_trainer(tmp_path, eval_dataset=held_out, per_device_eval_batch_size=1)
    if kind == "all":
        with pytest.raises(ValueError, match="nothing"):
            trainer.evaluate()
        return
    bound = trainer.bound()
    assert bound.num_tokens.tolist() == [LENGTH, 0, 0, LENGTH]
    assert math.isfinite(trainer.evaluate()["eval_bits_per_token"])


@pytest.mark.parametrize(
    ("device", "pinned", "expected"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_set_defaults__batches_are_copied_while_a_gpu_computes(device: str, pinned: bool, expected: bool) -> None:
    config = SimpleNamespace(dispatch_batches=None, non_blocking=False)
    args: Any = SimpleNamespace(
        accelerator_config=config,
        device=torch.device(device),
        dataloader_pin_memory=pinned,
        logging_nan_inf_filter=True,
    )
    set_defaults(args)
    assert config.non_blocking == expected
    assert args.dataloader_pin_memory == expected
    assert not args.logging_nan_inf_filter
    assert config.dispatch_batches is False
