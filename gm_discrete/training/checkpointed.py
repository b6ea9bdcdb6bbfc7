"""`CheckpointedTrainer`: transformers' Trainer whose checkpoints are complete or ignored, with one run for a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from gm_discrete.models import GMModel
from gm_discrete.models.card import Card, is_ours, write_card
from gm_discrete.training.adapters import base_model, check_adapter, describe_base, frozen_crc32, save_base
from gm_discrete.training.checkpoints import (
    check_config,
    check_new,
    check_resumed,
    check_state,
    defects,
    delete_leftovers,
    delete_old,
    last_complete_checkpoint,
    mark_complete,
    mark_started,
    saving,
)
from gm_discrete.training.ema import EMACallback
from gm_discrete.training.lock import locked
from gm_discrete.training.publishing import published

WEIGHTS = "*model*.safetensors*"
"""Files of weights, in one part or several: none of an earlier model stays beside those of a new one."""


class CheckpointedTrainer(Trainer):
    """The part of `GMTrainer` that starts and resumes a run, saves its checkpoints, and publishes its model."""

    @property
    def ema(self) -> EMACallback | None:
        """The `EMACallback`, if there is one."""
        return next((cb for cb in self.callback_handler.callbacks if isinstance(cb, EMACallback)), None)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the model has the averaged weights, if there are any."""
        with self.ema.applied(self._trained) if self.ema else nullcontext():
            yield

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: object = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As `Trainer.train`, on complete checkpoints that fit the model, and in a folder that no other run uses."""
        with locked(self._output_dir):
            if self.args.should_save:
                delete_leftovers(self._output_dir)
            checkpoint = self._checked_checkpoint(resume_from_checkpoint)
            if checkpoint is not None:
                if self.ema:
                    self.ema.load(checkpoint, self._shard)
                state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
                if 0 < self.args.max_steps <= state.global_step:  # finished: Trainer would take one more step
                    return self._finished(checkpoint, state)
            return super().train(checkpoint, cast(Any, trial), ignore_keys_for_eval)

    def _checked_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to go on from, which fits this run; `None` for a new run, in whose way there is none."""
        if not resume_from_checkpoint:
            check_new(self._output_dir)
            return None
        if resume_from_checkpoint is True:
            checkpoint = last_complete_checkpoint(self._output_dir)
            if checkpoint is None:
                reasons = defects(self._output_dir)
                raise ValueError(
                    f"output_dir={self._output_dir!r} holds no complete checkpoint to resume from: {reasons}"
                )
        else:
            check_resumed(checkpoint := str(resume_from_checkpoint))
        check_state(checkpoint)
        check_config(checkpoint, self._unwrapped.config)
        check_adapter(self.accelerator.unwrap_model(self._trained), checkpoint, self._frozen_crc32)
        return checkpoint

    def _finished(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        if self.is_fsdp_enabled:
            raise ValueError(f"{checkpoint} is the end of this run: nothing is left to train; raise max_steps")
        self._load_from_checkpoint(checkpoint)
        self.state = state
        return TrainOutput(state.global_step, 0.0, {})

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model and tokenizer for publication: averaged weights if there are any, and no pickle.

        The files get their names when all of them are written: an interruption leaves the folder as it was.
        """
        if _internal_call and output_dir is not None:  # a checkpoint
            super().save_model(output_dir, _internal_call=True)
            if self.args.should_save:
                save_base(self.accelerator.unwrap_model(self._trained), output_dir, self._frozen_crc32)
            return
        folder = output_dir or self._output_dir
        with saving(folder, self._output_dir), published(folder, self.args.should_save, replaces=WEIGHTS) as draft:
            with self.averaged_weights():
                super().save_model(str(draft), _internal_call=True)
            if self.args.should_save:
                (draft / TRAINING_ARGS_NAME).unlink(missing_ok=True)
                write_card(draft, self._unwrapped.card_text(self.card))
                describe_base(self.accelerator.unwrap_model(self._trained), draft, self.card)
                if not is_ours(Path(folder) / "README.md"):
                    (draft / "README.md").unlink()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @property
    def card(self) -> Card:
        """What the model card says beside the config."""
        return Card()

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        step = self.state.global_step
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{step}"
        if not all(bool(weight.isfinite().all()) for weight in self._trained.parameters()):
            raise FloatingPointError(
                f"the weights are not finite after step {step} and are not saved. "
                f"Last complete checkpoint: {last_complete_checkpoint(folder.parent) or 'none'}. Lower the learning rate."
            )
        with saving(folder, folder.parent):
            if self.args.should_save:
                mark_started(folder)
            self.accelerator.wait_for_everyone()
            limit = self.args.save_total_limit
            self.args.save_total_limit = None  # delete nothing before this checkpoint is complete
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            if self.ema and (self.args.should_save or self.is_fsdp_enabled):
                self.ema.save(folder, self._shard)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder)
                delete_old(folder.parent, limit, self.state.best_model_checkpoint, step)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints are not uploaded: `push_to_hub` publishes what `save_model` writes."""

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema and self.state.best_model_checkpoint:
            self.ema.load(self.state.best_model_checkpoint, self._shard)

    @cached_property
    def _frozen_crc32(self) -> int | None:
        """The hash of the weights below an adapter, computed once, as they do not change; `None` with FSDP."""
        return None if self.is_fsdp_enabled else frozen_crc32(self.accelerator.unwrap_model(self._trained))

    @property
    def _output_dir(self) -> str:
        return self.args.output_dir or "."

    @property
    def _shard(self) -> int:
        return self.args.process_index if self.is_fsdp_enabled else 0

    @property
    def _trained(self) -> nn.Module:
        """The module whose parameters are trained: the model, or with FSDP its sharded wrapper."""
        if self.model is None:
            raise ValueError(f"model={self.model}: there is nothing to train; give GMTrainer a GMModel")
        return self.model

    @property
    def _unwrapped(self) -> GMModel:
        return base_model(self.accelerator.unwrap_model(self._trained))
