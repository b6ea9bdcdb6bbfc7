"""`generate` of a model of numbers: from noise, or around what is given of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.given import NoisedPrompt, cells
from gm_discrete.generation.observers import Observers, Recorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Base = PreTrainedModel
else:
    Base = object


class NumbersMixin(Base):
    """What `GMModel` does on a Euclidean path only."""

    path: Any
    state_fields: Any
    _checked: Any
    _simulated: Any
    _answer: Any

    def _generate_numbers(
        self,
        config: GMGenerationConfig,
        given: Any,
        x_0: Tensor | None,
        labels: Tensor | None,
        batch_size: int | None,
        length: int | None,
        watch: Observers,
        rng: torch.Generator,
    ) -> Any:
        """`generate` of a Euclidean path."""
        path, known = self.path, None
        if given is not None:
            if x_0 is not None or batch_size is not None or length is not None:
                raise ValueError("given takes the place of x_0, batch_size and length")
            known = cells(given, self.state_fields[""], "").to(self.device)
            x_0 = path.prior(known.state.shape, rng, self.device)
        state, fixed, model = self._noise(config, x_0, batch_size, length, rng), None, self
        if known is not None and bool(known.known.any()):
            fixed = known.known
            state = torch.where(fixed, known.state, state)
            model = NoisedPrompt(self, known.state, fixed, None, rng)
        if config.output_trajectory:
            watch.recorder = Recorder(state, torch.zeros_like(state, dtype=torch.bool) if fixed is None else fixed)
        if config.generators is not None:
            path = path.reweighted(config.generators)
        conditioning = {
            "class_labels": self._checked(labels, len(state)),
            "guidance_scale": config.guidance_scale,
            "generators": config.generators,
        }
        run = self._simulated(model, path, state, fixed, config, config.step(), watch, rng, conditioning)
        watch.end(run.x)
        return self._answer(config, run.x, run, None, watch)

    def _noise(
        self,
        config: GMGenerationConfig,
        x_0: Tensor | None,
        batch_size: int | None,
        length: int | None,
        rng: torch.Generator,
    ) -> Tensor:
        """The state from which to start, [B, …]."""
        if length is not None and self.config.image_shape:
            raise ValueError("length is of sequences; the images of this model have image_shape")
        shape = self.config.state_shape(config.length or self.config.max_position_embeddings)
        if x_0 is None:
            if batch_size is not None and batch_size < 1:
                raise ValueError(f"batch_size={batch_size} must be at least 1")
            return self.path.prior((batch_size or 1, *shape), rng, self.device)
        if batch_size is not None or length is not None:
            raise ValueError("batch_size and length are those of x_0")
        if (
            x_0.dim() != len(shape) + 1
            or x_0.shape[2 if len(shape) == 2 else 1 :] != shape[1 if len(shape) == 2 else 0 :]
        ):
            raise ValueError(f"x_0 has shape {tuple(x_0.shape)}; the model takes [B, {str(shape)[1:-1]}]")
        return x_0.to(self.device)
