"""Options of transformers' `Trainer`: those that a `GMTrainer` refuses, as they would have no effect or a wrong one, and its
defaults for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

OWN_EVALUATION = "evaluation is the likelihood bound or the matching loss"
OWN_LOSS = "the loss is computed in the model: choose its `divergence` in GMConfig"

PARTS = {
    "model_init": "give a model",
    "compute_loss_func": OWN_LOSS,
    "compute_metrics": OWN_EVALUATION,
    "preprocess_logits_for_metrics": OWN_EVALUATION,
}
"""Arguments of `Trainer`, and why or in place of what they are refused."""

ARGUMENTS = {
    "label_smoothing_factor": OWN_LOSS,
    "include_for_metrics": OWN_EVALUATION,
    "batch_eval_metrics": OWN_EVALUATION,
    "fp16_full_eval": "evaluation has the precision of training: give fp16=True",
    "bf16_full_eval": "evaluation has the precision of training: give bf16=True",
    "auto_find_batch_size": "noise and schedule depend on the batch size: lower per_device_train_batch_size, and raise "
    "gradient_accumulation_steps",
    "neftune_noise_alpha": "the noise would be that of one process, and no function of seed and step: give GMConfig a "
    "hidden_dropout",
    "use_liger_kernel": "it has no kernels for this model, whose loss is fused already",
    "enable_jit_checkpoint": "it would leave checkpoints without their marker: lower save_steps",
    "do_predict": "sample with model.generate(…), score with evaluate(dataset)",
    "resume_from_checkpoint": "no run resumes by it: give it to train, as in trainer.train(resume_from_checkpoint=True)",
    "deepspeed": "averages, evaluation and checkpoints need whole weights or those of FSDP 2: launch with --fsdp_version 2",
    "parallelism_config": "noise is drawn for whole sequences on every process: launch with --fsdp_version 2",
}
"""Fields of `TrainingArguments`, likewise. They are refused unless they are empty, zero or false."""

UPLOADS = ("checkpoint", "all_checkpoints")
"""Values of `hub_strategy` that would upload checkpoints, which `GMTrainer` does not."""


def check_options(args: TrainingArguments, kwargs: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: an argument of `Trainer` or `TrainingArguments` does not work with a `GMTrainer`.
    """
    if args.output_dir and Path(args.output_dir).is_file():
        raise ValueError(f"output_dir={args.output_dir!r} is a file; give a folder")
    for name, cure in PARTS.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} is not supported by GMTrainer: {cure}")
    for name, cure in ARGUMENTS.items():
        if value := getattr(args, name, None):
            raise ValueError(f"{name}={value!r} is not supported by GMTrainer: {cure}")
    if args.push_to_hub and args.hub_strategy in UPLOADS:
        strategy = HubStrategy(args.hub_strategy).value
        raise ValueError(
            f"hub_strategy={strategy!r} is not supported by GMTrainer: checkpoints are not uploaded; "
            'hub_strategy="end" uploads what save_model writes'
        )


def set_defaults(args: TrainingArguments) -> None:
    """Sets the options whose defaults would be slow or wrong."""
    config: Any = args.accelerator_config
    if config.dispatch_batches is None:  # a dispatcher would need batches of one length: every process takes its rows
        config.dispatch_batches = False
    # It reads the loss of every step, to leave out of the log those that are not finite: they end the training.
    args.logging_nan_inf_filter = False
    if args.device.type in ("cpu", "mps"):
        args.dataloader_pin_memory = False  # it would have no effect but a warning
    elif args.device.type == "cuda" and args.dataloader_pin_memory:
        config.non_blocking = True  # batches are copied while the device computes


def check_best(args: TrainingArguments, metrics: Iterable[str], eval_dataset: object) -> None:
    """
    Args:
        metrics: what evaluation on one data set produces, without prefix.

    Raises:
        ValueError: `metric_for_best_model` is none of them.
    """
    if not (best := args.metric_for_best_model) or eval_dataset is None:
        return
    parts = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else [""]
    names = [f"eval_{part}{metric}" for part in parts for metric in metrics]
    if f"eval_{best.removeprefix('eval_')}" not in names:
        raise ValueError(
            f"metric_for_best_model={best!r} is no metric of GMTrainer on this model and eval_dataset; give one of "
            f"{', '.join(names)}"
        )
