"""Annealing of attention: a decoder from transformers learns to attend to later positions step by step."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from gm_discrete.arguments import number, whole
from gm_discrete.nn.masks import PLAIN
from gm_discrete.training.adapters import base_model


class CausalAnnealing(TrainerCallback):
    """ahead_n = min(1, n / N): the share of later positions that are attended to in training step n + 1.

    It starts with the causal attention that a decoder was pretrained with, and ends with attention in both directions.
    Between steps the attention is bidirectional: in evaluation, in generation and in saved models. A resumed run needs no
    state, as the share follows from the step.

    Source: DiffuLLaMA (Gong et al. 2024, arXiv 2410.17891).

    >>> annealing, model = CausalAnnealing(steps=4), nn.Module()
    >>> model.backbone = nn.Module()  # that of a GMModel, whose GMTrainer(…, callbacks=[annealing]) calls the rest
    >>> model.backbone.ahead = 1.0
    >>> annealing.on_step_begin(None, TrainerState(global_step=1), None, model=model)
    >>> model.backbone.ahead
    0.25
    >>> annealing.on_step_end(None, TrainerState(global_step=2), None, model=model)
    >>> model.backbone.ahead
    1.0

    Args:
        steps: N, a number of optimizer steps (an integer), or their share of the run (a float in (0, 1]).

    Raises:
        TypeError, ValueError: `steps` is neither.
    """

    def __init__(self, steps: int | float) -> None:
        if isinstance(steps, float):
            self.steps = number("steps", steps, above=0, most=1, cure=", or an integer: a number of optimizer steps")
        else:
            self.steps = whole("steps", steps, least=1, cure=", or a share of the run, such as 0.5")

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, model: nn.Module | None = None, **_: object
    ) -> None:
        """
        Raises:
            ValueError: the attention of the model cannot be annealed.
        """
        if model is None:
            return
        backbone: Any = base_model(model).backbone
        if not getattr(backbone, "can_anneal", False):
            raise ValueError(
                "CausalAnnealing needs a decoder of transformers as the backbone, without a block_size: the attention of "
                "this model is none that was causal and becomes bidirectional; leave the callback out"
            )
        if (name := backbone.config._attn_implementation or "sdpa") not in PLAIN:
            raise ValueError(
                f"CausalAnnealing: attn_implementation={name!r} has no mask for a share of the later positions; load the "
                "model with 'sdpa' or 'eager'"
            )

    def on_step_begin(
        self, args: object, state: TrainerState, control: object, model: nn.Module | None = None, **_: object
    ) -> None:
        steps = self.steps if isinstance(self.steps, int) else max(round(self.steps * state.max_steps), 1)
        _attend(model, min(1.0, state.global_step / steps))

    def on_step_end(
        self, args: object, state: TrainerState, control: object, model: nn.Module | None = None, **_: object
    ) -> None:
        _attend(model, 1.0)


def _attend(model: nn.Module | None, ahead: float) -> None:
    if model is not None:
        backbone: Any = base_model(model).backbone
        backbone.ahead = ahead
