"""`generate` of a model of symbols: all places at once, or block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.utils import logging

from gm_discrete.generation.blocks import Blocks
from gm_discrete.generation.canvas import Canvas
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.given import NoisedPrompt
from gm_discrete.generation.observers import Observers, Recorder
from gm_discrete.samplers import ClassifierGuidance, ClassifierGuided, Simulation, avoiding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gm_discrete.models.modeling import GMModel

    Base = PreTrainedModel
else:
    Base = object

logger = logging.get_logger(__name__)


@dataclass
class Request:
    """What is to be generated, and who looks on."""

    config: GMGenerationConfig
    canvas: Canvas
    labels: Tensor | None
    logits_processor: LogitsProcessorList | None
    allowed: Tensor | None
    watch: Observers
    rng: torch.Generator

    def told(self, rows: Tensor, length: int) -> dict[str, Any]:
        """What the generator is told of the first `length` positions of the rows [n], beside their state."""
        real = self.canvas.real[rows, :length]
        allowed = self.allowed if self.allowed is None or self.allowed.dim() == 2 else self.allowed[rows]
        return {
            "attention_mask": None if bool(real.all()) else real,
            "logits_processor": self.watch.behind(self.config.processors(self.logits_processor, allowed)),
            "class_labels": None if self.labels is None else self.labels[rows],
            "guidance_scale": self.config.guidance_scale,
        }


class SymbolsMixin(Base):
    """What `GMModel` does on a path of symbols in a single field only."""

    path: Any
    _checked: Any
    _simulated: Any
    _answer: Any

    def _generate_symbols(
        self,
        config: GMGenerationConfig,
        canvas: Canvas,
        source: Tensor | None,
        labels: Tensor | None,
        logits_processor: LogitsProcessorList | None,
        allowed: Tensor | None,
        predictor: ClassifierGuidance | None,
        watch: Observers,
        rng: torch.Generator,
    ) -> Any:
        """`generate` of symbols in a single field."""
        labels = self._checked(labels, len(canvas.ids))
        start = self.path.prior(canvas.ids.shape, rng, self.device) if source is None else source
        known, canvas.ids = canvas.ids, torch.where(canvas.fixed, canvas.ids, start)
        watch.begin(known, canvas.shown)
        if config.output_trajectory:
            watch.recorder = Recorder(canvas.ids, canvas.fixed)
        request = Request(config, canvas, labels, logits_processor, allowed, watch, rng)
        size = config.block_length or self.config.block_size
        run = self._at_once(request, known, source, predictor) if size is None else self._in_blocks(request, size)
        watch.end(run.x)
        return self._answer(config, run.x, run, canvas.real[:, : run.x.shape[1]], watch)

    def _at_once(
        self, request: Request, known: Tensor, source: Tensor | None, predictor: ClassifierGuidance | None
    ) -> Simulation:
        """All places together, from t = 0 to t = 1."""
        config, canvas = request.config, request.canvas
        model: Any = self if predictor is None else ClassifierGuided(self, predictor)
        if self.path.rates != "masked" and bool((canvas.fixed & (canvas.real == 1)).any()):
            model = NoisedPrompt(model, known, canvas.fixed, source, request.rng)  # the predictor, too, sees it noised
        step = avoiding(config.step(), config.bad_words_ids) if config.bad_words_ids else config.step()
        told = request.told(torch.arange(len(canvas.ids), device=self.device), canvas.ids.shape[1])
        return self._simulated(
            model, self.path, canvas.ids, canvas.fixed, config, step, request.watch, request.rng, told
        )

    def _in_blocks(self, request: Request, size: int) -> Simulation:
        """Block after block, each from t = 0 to t = 1, of the sequences that have not ended."""
        config, canvas, watch = request.config, request.canvas, request.watch
        eos, banned = config.eos_token_id, config.bad_words_ids
        ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        pads = [pad for pad in (config.pad_token_id, self.config.pad_token_id, *ends) if pad is not None]
        blocks = Blocks(cast("GMModel", self), canvas, size, ends, pads[0] if pads else 0, config.use_cache)
        for block, rows in blocks.to_fill(request.labels):
            step, here = config.step(), slice(block.start, block.stop)
            if banned:
                step = avoiding(step, banned, block.whole[:, : block.start], block.whole[:, block.stop :])
            watch.look_at(canvas.ids, rows, here)
            state, fixed, told = (
                canvas.ids[rows, here],
                canvas.fixed[rows, here],
                request.told(rows, block.whole.shape[1]),
            )
            run = self._simulated(block, self.path, state, fixed, config, step, watch, request.rng, told)
            blocks.put(block, rows, run)
            going = (~canvas.fixed[:, block.stop :]).any(1)
            if watch.stopped_at is not None or watch.met(canvas.ids[:, : block.stop], ~going):
                blocks.stop(block)
                break
            watch.put(canvas.ids[:, : block.stop])
        length = int(canvas.real.any(0).sum())  # what is padding everywhere stands behind
        times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return Simulation(canvas.ids[:, :length], times, blocks.calls, blocks.jumps, blocks.error)

    def _canvas(
        self,
        config: GMGenerationConfig,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        x_0: Tensor | None,
        batch_size: int | None,
        length: int | None,
        max_new_tokens: int | None,
    ) -> tuple[Canvas, Tensor | None]:
        """What is to be filled, and the sources [B, L] from which that of a coupled path starts."""
        if x_0 is not None and input_ids is None:
            if batch_size is not None or length is not None:
                raise ValueError("batch_size and length are those of x_0")
            if not isinstance(x_0, Tensor) or x_0.dim() != 2:
                raise ValueError(f"x_0 must be a long tensor [B, L], got {type(x_0).__name__}")
            batch_size, config = x_0.shape[0], config.updated(length=x_0.shape[1])
        trained = self.config.max_position_embeddings
        if input_ids is None:
            if attention_mask is not None or max_new_tokens:
                raise ValueError(
                    "attention_mask and max_new_tokens go with input_ids; use length and batch_size instead"
                )
            if batch_size is not None and batch_size < 1:
                raise ValueError(f"batch_size={batch_size} must be at least 1")
            if length is not None and self.config.image_shape:
                raise ValueError("length is of sequences; the images of this model have image_shape")
            shape = (batch_size or 1, *self.config.state_shape(config.length or trained))
            canvas = Canvas.empty(shape, self.device)
        else:
            if batch_size is not None or length is not None:
                raise ValueError("batch_size and length are those of input_ids; use max_new_tokens to add positions")
            pad = config.pad_token_id if config.pad_token_id is not None else self.config.pad_token_id
            in_blocks = (config.block_length or self.config.block_size) is not None
            ids = input_ids.to(self.device) if isinstance(input_ids, Tensor) else input_ids
            canvas = Canvas.of_prompts(
                self.path, ids, attention_mask, config.max_new_tokens, self.config.mask_token_id, pad, in_blocks
            )
        source = None if x_0 is None else x_0.to(self.device)
        self.path.check_source(source, canvas.ids, torch.zeros(len(canvas.ids)))
        if canvas.ids.shape[1] > trained and not self.config.image_shape:
            logger.warning_once(
                f"{canvas.ids.shape[1]} positions; the model is made for max_position_embeddings={trained}"
            )
        return canvas, source
