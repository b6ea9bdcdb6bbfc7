"""`GMTrainer`: transformers' Trainer with stateless noise, evaluation by the likelihood bound, and complete checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from math import isfinite
from pathlib import Path
from typing import Any, Never, TypeAlias, TypeVar, cast

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import TrainOutput

from gm_discrete.data import ImageCollator, TokenCollator, check_tokenizer
from gm_discrete.evaluation import evaluate_bound, evaluate_matching
from gm_discrete.likelihood import Likelihood
from gm_discrete.models import GMModel
from gm_discrete.models.card import Card, is_ours, write_card
from gm_discrete.objective import LogitNormalTimeSampler, TimeSampler
from gm_discrete.process import pack, pack_state, unpack
from gm_discrete.training.adapters import ADAPTER_CONFIG, base_model, check_wrapped
from gm_discrete.training.checkpointed import CheckpointedTrainer
from gm_discrete.training.checkpoints import last_complete_checkpoint
from gm_discrete.training.compiled import prepare_compilation
from gm_discrete.training.finite import Checked, LossCheck
from gm_discrete.training.noise import noisy_inputs, seeded_generator
from gm_discrete.training.options import check_best, check_options, set_defaults
from gm_discrete.training.publishing import published
from gm_discrete.training.sharding import gathered, prepare_sharding

T = TypeVar("T")
EvalData: TypeAlias = Dataset | IterableDataset | TorchDataset | Mapping[str, Any]
"""A data set, or several by name."""


class GMTrainer(CheckpointedTrainer):
    """Trains a `GMModel` on batches of clean data, as the collators of `gm_discrete.data` make them.

    - Times and noise of optimizer step n and micro-step m are drawn for the global batch from a generator seeded by
      (seed, n, m), and each process takes its rows. Any number of processes therefore trains on the same noise, and a
      resumed run on that of an unbroken one. Dropout is not part of it: every process draws the masks of its own rows, so
      that with dropout another number of processes ends with other weights, while a resumed run does not.
    - For discrete paths evaluation is the likelihood bound on held-out data, else the matching loss; at averaged weights if
      there is an `EMACallback`.
    - A loss that is not finite stops training: on a CPU before the weights change; on a GPU, which nothing waits for, one
      step later, before anything is logged, evaluated or saved (see `LossCheck`).
    - A checkpoint gets a marker, written last, with a hash of each of its files, and only checkpoints that agree with it
      are resumed from.
    - A run locks its `output_dir` against other runs. The model may have an adapter of PEFT.

    >>> import tempfile
    >>> from datasets import Dataset
    >>> from gm_discrete import GMConfig, MaskedPath
    >>> model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> data = Dataset.from_dict({"input_ids": [[0, 1, 2, 3]] * 8})
    >>> args = TrainingArguments(tempfile.mkdtemp(), max_steps=2, save_strategy="no", report_to="none", disable_tqdm=True)
    >>> trainer = GMTrainer(model, args, train_dataset=data, eval_dataset=data)
    >>> round(trainer.bound().bits_per_token, 4)  # an untrained network is uniform over four tokens
    2.0
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...
    2

    Args:
        model: the model to train.
        args: transformers' `TrainingArguments`.
        time_sampler: distribution of κ(t) in training; `LogitNormalTimeSampler()` by default, as in `conditional_loss`. The
            reported bound does not depend on it.
        num_eval_samples: draws per sequence in evaluation.
        kwargs: other arguments of `Trainer`. `processing_class` is the tokenizer; `data_collator` is by default a
            `TokenCollator`, or for a continuous path an `ImageCollator`.

    Raises:
        TypeError: the model is no `GMModel`; or `times` is given, the name of `time_sampler` in version 0.1.
        ValueError: an argument of `Trainer` is not supported, the tokenizer does not fit the model, or the model has several
            fields and there is no data_collator.
    """

    def __init__(
        self,
        model: GMModel,
        args: TrainingArguments,
        *,
        time_sampler: TimeSampler | None = None,
        num_eval_samples: int = 8,
        **kwargs: Any,
    ) -> None:
        if "times" in kwargs:
            raise TypeError(f"times is now called time_sampler: GMTrainer(…, time_sampler={kwargs['times']!r})")
        check_options(args, kwargs)
        check_wrapped(model)
        base = base_model(model)
        if not isinstance(base, GMModel):
            raise TypeError(
                f"model is a {type(base).__name__}, and must be a GMModel; train any other network with a path and a "
                "generator in a loop around conditional_loss"
            )
        tokenizer, path, config = kwargs.get("processing_class"), base.path, base.config
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            check_tokenizer(tokenizer, vocab_size=config.vocab_size, mask_token_id=config.mask_token_id)
        if "" not in path.fields:
            args.remove_unused_columns = False  # the columns of a table are those of the collator
            if kwargs.get("data_collator") is None:
                raise ValueError(f"data_collator is missing; give one for {path!r}, such as data.TableCollator")
        elif path.is_discrete:
            padding = (config.pad_token_id or 0) if path.strings is None else path.strings.blank
            kwargs.setdefault("data_collator", TokenCollator(padding))
        else:
            kwargs.setdefault("data_collator", ImageCollator())
        set_defaults(args)
        super().__init__(model=model, args=args, **kwargs)
        self.time_sampler = time_sampler or LogitNormalTimeSampler()
        self.num_eval_samples = num_eval_samples
        self._noise_step = (-1, 0)  # optimizer step, micro-step
        self._card, self._measured = Card(), (-1, {})  # what create_model_card was given; step and metrics of it
        self._has_warned_of_empty = False
        self.loss_check = LossCheck(lambda flags: cast(Tensor, self.accelerator.reduce(flags, "sum")), self._report)
        if type(self).evaluate is GMTrainer.evaluate:  # else it may produce others
            check_best(args, _metric_names(base), self.eval_dataset)
        prepare_compilation(self, base)
        if self.is_fsdp_enabled:
            prepare_sharding(self, base)

    # Training

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        for name in ("source_ids", "pixel_values", "class_labels"):  # columns that only collator or trainer use
            if name not in columns:
                columns.append(name)
        if "token_type_ids" in columns:  # what BERT's tokenizers add; collators refuse columns of no effect
            columns.remove("token_type_ids")

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if not self._trained.training:
            return inputs
        step, micro_step = self._noise_step
        now = self.state.global_step
        self._noise_step = (now, micro_step + 1 if step == now else 0)
        model, rng = self._unwrapped, self._rng(*self._noise_step)
        return noisy_inputs(inputs, model.path, rng, self.time_sampler, model.config.class_dropout, self.accelerator)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """The number of scored entries of a step on all processes; by field if there are several."""
        fields = self._unwrapped.path.fields
        plain = self._is_discrete and self._unwrapped.path.strings is None
        if plain or not batch_samples or "labels" not in batch_samples[0]:
            count: Any = super()._get_num_items_in_batch(batch_samples, device)
            return count.clamp(min=1) if isinstance(count, torch.Tensor) else count
        labels = [pack_state(self._unwrapped.path, batch["labels"], "labels") for batch in batch_samples]
        found = [
            sum(field.number(part[name], field.loss_mask(part[name])) for part in labels)
            for name, field in fields.items()
        ]
        counts: Any = torch.stack([torch.as_tensor(count) for count in found]).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return unpack(dict(zip(fields, counts.clamp(min=1), strict=True)))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if isinstance(result, tuple) else result
        labels, fields = pack(inputs["labels"]), self._unwrapped.path.fields
        scored = [field.loss_mask(labels[name]).any() for name, field in fields.items()]
        self.loss_check.add(loss.mean() if loss.dim() else loss, ~reduce(torch.logical_or, scored))
        if self.accelerator.sync_gradients:
            optimizer: Any = getattr(self.optimizer, "optimizer", None)  # that of torch
            can_skip = getattr(optimizer, "_step_supports_amp_scaling", False) and not self.is_fsdp_enabled
            bad = self.loss_check.close(self.state.global_step + 1, can_skip)
            if can_skip and bad is not None:
                optimizer.found_inf = bad  # a fused optimizer does nothing if it is 1
        return result

    def _report(self, found: Checked) -> None:
        bad, empty = found.counts
        if empty and not self._has_warned_of_empty:
            self._has_warned_of_empty = True
            warnings.warn(
                f"the batch of step {found.step} has nothing to learn, as no entry of its labels is scored: "
                "such batches contribute zero, and this is the only warning of them",
                stacklevel=2,
            )
        if bad:
            vars(getattr(self.optimizer, "optimizer", self)).pop("found_inf", None)  # else it would do no further step
            own = found.own.item()
            what = "another process has a loss that is not finite" if isfinite(own) else f"the loss is {own}"
            weights = "are unchanged" if found.is_unchanged else "have changed, and are not saved"
            raise FloatingPointError(
                f"{what} at step {found.step}; the weights {weights}. Last complete checkpoint: "
                f"{last_complete_checkpoint(self._output_dir) or 'none'}. Lower the learning rate or check the data."
            )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: object = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As `Trainer.train`; `resume_from_checkpoint=True` resumes from the newest complete checkpoint.

        A run that resumes on a stream reads the stream again up to its position.

        Raises:
            ValueError: the checkpoint is incomplete or damaged, belongs to another model, or there is none; or this is a new
                run and `output_dir` holds checkpoints of an earlier one; or another run uses `output_dir`.
        """
        if self.train_dataset is None or next(iter(self.train_dataset), None) is None:
            raise ValueError("train_dataset is empty; give at least one example")
        if isinstance(self.train_dataset, IterableDataset):
            # One endless pass: a resumed run looks for its position within a pass. Every repetition has the same order.
            self.train_dataset = self.train_dataset.repeat(None)
        self._noise_step, self._has_warned_of_empty = (-1, 0), False
        self.loss_check.clear()
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`, after the check of the losses: it reads them anyway, and ends the training."""
        self.loss_check.read()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.loss_check.read()
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        self.loss_check.read()
        super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = self._unwrapped._tied_weights_keys or {}  # a checkpoint holds them once, under the other name
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    # Evaluation

    def get_eval_dataloader(
        self, eval_dataset: str | TorchDataset | Dataset | IterableDataset | None = None
    ) -> DataLoader:
        """As `Trainer.get_eval_dataloader`; `dataloader_drop_last` is for training, and leaves out no held-out example."""
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(cast(Any, eval_dataset))
        finally:
            self.args.dataloader_drop_last = drop

    def evaluate(
        self,
        eval_dataset: EvalData | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of held-out data, at averaged weights if there are any.

        For a single discrete field the likelihood bound: bits per token with their standard error, perplexity, and nats per
        token as loss. Otherwise the matching loss, in all and by part, for several fields by field.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, Mapping):
            parts = (self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in dataset.items())
            return {key: value for metrics in parts for key, value in metrics.items()}
        if not self._is_discrete:
            metrics = self._evaluated(evaluate_matching, dataset)
            self._record(dataset, metrics)
        else:
            bound = self.bound(dataset)
            metrics = {
                "loss": float(bound.nats.sum() / bound.num_tokens.sum()),
                "bits_per_token": bound.bits_per_token,
                "bits_per_token_stderr": bound.stderr,
                "perplexity": bound.perplexity,
            }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def bound(self, dataset: EvalData | None = None) -> Likelihood:
        """The likelihood bound of a data set (the evaluation set by default), at averaged weights if there are any."""
        bound = self._evaluated(evaluate_bound, dataset)
        found = {"bits_per_token": bound.bits_per_token, "bits_per_token_stderr": bound.stderr}
        self._record(dataset, {**found, "sequences": len(bound.nats)})
        return bound

    def _record(self, dataset: EvalData | None, metrics: dict[str, float]) -> None:
        """Keeps the metrics of the evaluation set for the model card."""
        if dataset is None or dataset is self.eval_dataset:
            self._measured = (self.state.global_step, metrics)

    def _evaluated(self, evaluate: Callable[..., T], dataset: EvalData | None) -> T:
        self.loss_check.read()
        dataloader = self.get_eval_dataloader(cast(Any, dataset))
        rng = self._rng(0, 0, self.args.process_index)
        with self.averaged_weights(), gathered(self._trained), self.accelerator.autocast():
            return evaluate(
                self._unwrapped, dataloader, num_samples=self.num_eval_samples, rng=rng, accelerator=self.accelerator
            )

    # Publication

    @property
    def card(self) -> Card:
        """What the model card says beside the config: data, steps, and the metrics of these weights, if there are any."""
        step, metrics = self._measured
        now, base = self.state.global_step, self._unwrapped
        return replace(
            self._card,
            base=self._card.base or base.name_or_path or None,
            step=now or None,
            metrics=metrics if step == now else {},
            has_tokenizer=isinstance(self.processing_class, PreTrainedTokenizerBase),
        )

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes the model card to `output_dir`, as `save_model` does, with what is given here and in earlier calls.

        Arguments are those of `Trainer.create_model_card`; `tasks` and `dataset_args` have no effect, and names of data sets
        that are not of the hub are in the text alone. A README.md of another origin is not overwritten.
        """
        names = [*_listed(dataset), *_listed(dataset_tags)]
        given = {"name": model_name, "license": license, "language": language, "base": finetuned_from}
        given |= {"tags": _listed(tags), "data": list(dict.fromkeys(names))}
        self._card = replace(self._card, **{name: value for name, value in given.items() if value})
        if not self.is_world_process_zero():
            return
        folder = Path(self._output_dir)
        card = replace(self.card, is_adapter=(folder / ADAPTER_CONFIG).is_file())
        if is_ours(folder / "README.md"):
            with published(folder) as draft:
                write_card(draft, self._unwrapped.card_text(card))

    # What does not work

    def predict(self, *args: object, **kwargs: object) -> Never:
        """Refused: a generative model predicts by `model.generate`, and `evaluate` scores a data set."""
        raise ValueError(
            "predict is not supported by GMTrainer; sample with model.generate(…), score with evaluate(dataset) or "
            "bound(dataset)"
        )

    def hyperparameter_search(self, *args: object, **kwargs: object) -> Never:
        """Refused: it would start all trials in one `GMTrainer`, whose noise and checkpoints are of one run."""
        raise ValueError("hyperparameter_search is not supported by GMTrainer; make a GMTrainer for each trial")

    @property
    def _is_discrete(self) -> bool:
        """Whether the model has a single discrete field."""
        path = self._unwrapped.path
        return "" in path.fields and path.is_discrete

    def _rng(self, *stream: int) -> torch.Generator:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return seeded_generator(self.args.device, seed, *stream)


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _metric_names(model: GMModel) -> list[str]:
    """The metrics of `evaluate`, without prefix."""
    fields, divergence = model.path.fields, model.config.divergence
    if "" not in fields:
        return ["loss", *fields]
    if model.path.is_discrete:
        return ["loss", "bits_per_token", "bits_per_token_stderr", "perplexity"]
    kinds = fields[""].default_divergence if divergence is None else divergence
    return ["loss", *(kinds if isinstance(kinds, Mapping) else ["jump"])]
