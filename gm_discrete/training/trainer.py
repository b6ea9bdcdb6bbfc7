"""`GMTrainer`: transformers' Trainer, with noise that is stateless, a bound for a metric, and checkpoints one can trust."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from gm_discrete.data import ImageCollator, TokenCollator, check_tokenizer
from gm_discrete.evaluation import evaluate_bound, evaluate_matching
from gm_discrete.likelihood import LikelihoodBound
from gm_discrete.models import GMConfig, GMModel
from gm_discrete.objective import LogitNormalTimeSampler, TimeSampler, corrupt, drop_classes
from gm_discrete.paths import EuclideanPath, FinitePath, ProductPath
from gm_discrete.process import pack, unpack
from gm_discrete.training.checkpoints import (
    checkpoints,
    is_broken,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    mark_started,
)
from gm_discrete.training.ema import EMACallback


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within this context the parts of a model that FSDP 2 has sharded may be called one by one."""
    if isinstance(model, FSDPModule):
        model.unshard()  # what belongs to no block, and is else gathered by the whole model's forward only
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _padded(value: torch.Tensor, length: int) -> torch.Tensor:
    """Filled up behind with zeros, to [B, length, …]."""
    return nn.functional.pad(value, (*[0, 0] * (value.dim() - 2), 0, length - value.shape[1]))


class GMTrainer(Trainer):
    """Trains a `GMModel` on batches of clean data, as the collators of `gm_discrete.data` make them.

    - The times and the noise of optimizer step n and micro-step m are those of the whole global batch, drawn from a
      generator seeded by (seed, n, m); each process takes its rows. Any number of processes therefore trains on the same
      noise, and a resumed run on that of an unbroken one.
    - Evaluation is the likelihood bound on held-out data, at averaged weights if there is an `EMACallback`.
    - A loss that is not finite ends training before it reaches the weights. Checkpoints carry a marker, written last,
      and only those that have it are resumed from.

    Args:
        model, args: as for `Trainer`.
        time_sampler: distribution of κ(t) in training; bell-shaped by default. The reported bound does not depend on it.
        num_eval_samples: draws per sequence in the bound.
        kwargs: the other arguments of `Trainer`. `processing_class` is the tokenizer.
    """

    def __init__(
        self,
        model: GMModel,
        args: Any,
        *,
        time_sampler: TimeSampler | None = None,
        num_eval_samples: int = 8,
        **kwargs: Any,
    ) -> None:
        for name in ("model_init", "compute_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not used here: give a model; evaluation is the likelihood bound")
        tokenizer = kwargs.get("processing_class")
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            config = model.config
            check_tokenizer(tokenizer, vocab_size=config.vocab_size, mask_token_id=config.mask_token_id)
        numbers = isinstance(model.path, EuclideanPath)
        if isinstance(model.path, ProductPath):
            args.remove_unused_columns = False  # the columns of a table are its own
            if kwargs.get("data_collator") is None:
                raise ValueError("data_collator is missing: fields have one of their own, such as data.TableCollator")
        kwargs.setdefault(
            "data_collator", ImageCollator() if numbers else TokenCollator(model.config.pad_token_id or 0)
        )
        # Every process reads a stream and takes its rows; a dispatcher would need batches of one length.
        if args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False
        super().__init__(model=model, args=args, **kwargs)
        self.time_sampler = time_sampler or LogitNormalTimeSampler()
        self.num_eval_samples = num_eval_samples
        self._noise_step = (-1, 0)  # optimizer step, micro-step
        if self.is_fsdp_enabled:
            self._prepare_sharding(model)

    def _prepare_sharding(self, model: GMModel) -> None:
        model.whole_batches = True
        plugin: Any = self.accelerator.state.fsdp_plugin
        for wrong, cure in (
            (plugin.fsdp_version != 2, "launch with --fsdp_version 2"),
            (self.args.eval_on_start, "leave out eval_on_start"),
            (self.optimizer_cls_and_kwargs is not None, "train with an optimizer of TrainingArguments"),
        ):
            if wrong:
                raise ValueError(f"the weights are sharded by FSDP: {cure}")
        if plugin.mixed_precision_policy is not None:  # times and the loss keep their precision
            plugin.mixed_precision_policy = replace(
                plugin.mixed_precision_policy, cast_forward_inputs=False, output_dtype=None
            )

    @property
    def ema(self) -> EMACallback | None:
        """The callback that averages the weights, if there is one."""
        return next((cb for cb in self.callback_handler.callbacks if isinstance(cb, EMACallback)), None)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the model holds the averaged weights, if any are kept."""
        with self.ema.applied(self._trained) if self.ema else nullcontext():
            yield

    # Training

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        for name in ("source_ids", "pixel_values", "class_labels"):  # no arguments of forward, or of the collator alone
            if name not in columns:
                columns.append(name)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if not self._trained.training:
            return inputs
        step, micro_step = self._noise_step
        now = self.state.global_step
        self._noise_step = (now, micro_step + 1 if step == now else 0)
        rng = self._rng(*self._noise_step)
        path, rank, world_size = self._unwrapped.path, self.args.process_index, self.args.world_size
        state, labels = pack(inputs[path.state_name]), pack(inputs["labels"])
        scored = {name: field.loss_mask(labels[name]) for name, field in path.fields.items()}
        data = {name: torch.where(scored[name], labels[name], state[name]) for name in path.fields}
        lengths, source = {name: z.shape[1] for name, z in data.items()}, inputs.pop("source_ids", None)
        if world_size > 1:  # every process draws noise of one shape, that of the longest batch
            counts = torch.tensor([list(lengths.values())], device=next(iter(data.values())).device)
            longest: Any = self.accelerator.gather(counts)
            for name, most in zip(lengths, longest.amax(0).tolist(), strict=True):
                data[name], scored[name] = _padded(data[name], most), _padded(scored[name], most)
                source = None if source is None else _padded(source, most)
        sources = None if source is None else pack(source)
        x, t = corrupt(path, data, scored, rng, self.time_sampler, rank, world_size, sources)
        x = {name: noisy[:, : lengths[name]] for name, noisy in x.items()}
        if "class_labels" in inputs:
            dropout = self._unwrapped.config.class_dropout
            inputs["class_labels"] = drop_classes(inputs["class_labels"], dropout, rng, rank, world_size)
        return {**inputs, path.state_name: unpack(x), "time": t}

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Scored entries of a step on all processes; by field if there are several."""
        path = self._unwrapped.path
        if isinstance(path, FinitePath) or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        labels = [pack(batch["labels"]) for batch in batch_samples]
        found = [sum(field.loss_mask(part[name]).sum() for part in labels) for name, field in path.fields.items()]
        counts: Any = torch.stack([torch.as_tensor(count) for count in found]).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return unpack(dict(zip(path.fields, counts.clamp(min=1), strict=True)))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        finite: Any = self.accelerator.reduce(torch.isfinite(loss.detach()).all().float(), "sum")
        if int(finite) < self.args.world_size:
            last = last_complete_checkpoint(self.args.output_dir or ".")
            own = f"the loss is {loss.detach().mean().item()}"
            what = "another process has a loss that is not finite" if bool(torch.isfinite(loss).all()) else own
            raise FloatingPointError(
                f"{what} at step {self.state.global_step + 1}; the weights were not touched. "
                f"Last complete checkpoint: {last or 'none'}. Lower the learning rate or look at the data."
            )
        return result

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the newest complete checkpoint.

        A run that is resumed on a stream reads the stream again up to its place.

        Raises:
            ValueError: the checkpoint is not complete, is of another model, or there is none; or the run is a new one, and
                `output_dir` holds checkpoints of an earlier one, with which its own would be confused.
        """
        self._noise_step = (-1, 0)
        if self.train_dataset is None or next(iter(self.train_dataset), None) is None:
            raise ValueError("train_dataset is empty; give at least one sequence")
        if isinstance(self.train_dataset, IterableDataset):
            # One pass without end: a resumed run looks for its place within a pass. Every round has the same order.
            self.train_dataset = self.train_dataset.repeat(None)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir or ".")
            if resume_from_checkpoint is None:
                raise ValueError(f"output_dir={self.args.output_dir!r} holds no complete checkpoint to resume from")
        if resume_from_checkpoint:
            if not is_complete(resume_from_checkpoint):
                raise ValueError(f"{resume_from_checkpoint} is not a complete checkpoint: its writing was interrupted")
            self._check_model(str(resume_from_checkpoint))
            if self.ema:
                self.ema.load(resume_from_checkpoint, self._shard)
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_NAME)))
            if 0 < self.args.max_steps <= state.global_step:  # finished: the Trainer would make one step more
                if self.is_fsdp_enabled:
                    raise ValueError(f"{resume_from_checkpoint} is the end of this run: nothing is left to train")
                self._load_from_checkpoint(str(resume_from_checkpoint))
                self.state = state
                return TrainOutput(state.global_step, 0.0, {})
        elif last := last_complete_checkpoint(self.args.output_dir or "."):
            raise ValueError(
                f"output_dir holds {last} of an earlier run: resume_from_checkpoint=True goes on from there; "
                "a new run needs a folder of its own"
            )
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _check_model(self, checkpoint: str) -> None:
        saved, own = GMConfig.from_pretrained(checkpoint), self._unwrapped.config
        of_the_trainer = {"pad_token_id", "bos_token_id", "eos_token_id"}  # it takes them from the tokenizer
        names = GMConfig.__annotations__.keys() - of_the_trainer
        if changed := [name for name in names if getattr(saved, name) != getattr(own, name)]:
            name = min(changed, key=lambda name: (name != "path", name))
            raise ValueError(
                f"{checkpoint} is of another model: its {name} is {getattr(saved, name)!r}, here {getattr(own, name)!r}"
            )

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Likelihood bound: bits per token with its standard error, perplexity, and the bound in nats per token as loss.

        Of a Euclidean path the matching loss, in all and by part; of a product by field.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            parts = (self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in dataset.items())
            return {key: value for metrics in parts for key, value in metrics.items()}
        if not isinstance(self._unwrapped.path, FinitePath):
            metrics = self._matching(dataset)
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

    def bound(self, dataset: Any = None) -> LikelihoodBound:
        """The likelihood bound of a data set (the evaluation set by default), at averaged weights where there are any."""
        dataloader = self.get_eval_dataloader(dataset)
        rng = self._rng(0, 0, self.args.process_index)
        with self.averaged_weights(), gathered(self._trained), self.accelerator.autocast():
            return evaluate_bound(
                self._unwrapped, dataloader, num_samples=self.num_eval_samples, rng=rng, accelerator=self.accelerator
            )

    def _matching(self, dataset: Any) -> dict[str, float]:
        dataloader = self.get_eval_dataloader(dataset)
        rng = self._rng(0, 0, self.args.process_index)
        with self.averaged_weights(), gathered(self._trained), self.accelerator.autocast():
            return evaluate_matching(
                self._unwrapped, dataloader, num_samples=self.num_eval_samples, rng=rng, accelerator=self.accelerator
            )

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model and tokenizer for publication: averaged weights where there are any, and no pickle."""
        if _internal_call and output_dir is not None:  # a checkpoint
            return super().save_model(output_dir, _internal_call=True)
        with self.averaged_weights():
            super().save_model(output_dir)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir or ".", "training_args.bin").unlink(missing_ok=True)
        return None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if not all(bool(weight.isfinite().all()) for weight in self._trained.parameters()):
            raise FloatingPointError(
                f"the weights are not finite after step {self.state.global_step}; they are not saved. "
                f"Last complete checkpoint: {last_complete_checkpoint(folder.parent) or 'none'}."
            )
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # nothing is deleted before this is complete
        try:
            if self.args.should_save:
                mark_started(folder)
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.ema and (self.args.should_save or self.is_fsdp_enabled):
            self.ema.save(folder, self._shard)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder)
            for broken in filter(is_broken, checkpoints(folder.parent)):
                shutil.rmtree(broken)
            best = self.state.best_model_checkpoint
            complete = [path for path in checkpoints(folder.parent) if is_complete(path)]
            for old in complete[: -limit if limit else 0]:
                if best is None or old.resolve() != Path(best).resolve():
                    shutil.rmtree(old)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints stay here: `push_to_hub` publishes what `save_model` writes."""

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema and self.state.best_model_checkpoint:
            self.ema.load(self.state.best_model_checkpoint, self._shard)

    @property
    def _shard(self) -> int:
        return self.args.process_index if self.is_fsdp_enabled else 0

    @property
    def _trained(self) -> nn.Module:
        """The module whose parameters are trained: the model, or under FSDP its sharded wrapper."""
        if self.model is None:
            raise ValueError("model is missing")
        return self.model

    @property
    def _unwrapped(self) -> GMModel:
        return self.accelerator.unwrap_model(self._trained)

    def _rng(self, *stream: int) -> torch.Generator:
        """A generator whose stream is a function of the seed and the given numbers alone."""
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        state = np.random.SeedSequence((seed, len(stream), *stream)).generate_state(1, np.uint64)[0]
        return torch.Generator(device=self.args.device).manual_seed(int(state) >> 1)
