"""`generate`: from a prompt, a text with gaps, a class, or nothing at all to finished sequences, vectors and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging

from gm_discrete.generators import Generator
from gm_discrete.models.config import Field, GMConfig
from gm_discrete.models.generation_config import GMGenerationConfig
from gm_discrete.models.given import cells
from gm_discrete.models.outputs import GMGenerateOutput
from gm_discrete.models.watching import Recorder, Watch
from gm_discrete.paths import EuclideanPath, ProductPath
from gm_discrete.samplers import EUCLIDEAN_STEPS, PRODUCT_STEPS, STEPS, Corrector, simulate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Base = PreTrainedModel
else:
    Base = object


logger = logging.get_logger(__name__)


class GMGenerationMixin(Base):
    """The generation methods of `GMModel`."""

    config: GMConfig
    path: Any
    state_fields: dict[str, Field]
    whole_batches: bool
    generation_config: GMGenerationConfig
    _generate_fields: Any

    def adjust_generation_fn(
        self,
        generation_config: GMGenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: Any,
        path: str,
        **kwargs: Any,
    ) -> None:
        """Called by `from_pretrained` to load `generation_config.json`, if there is one."""
        if generation_config is not None:
            self.generation_config = generation_config
            return
        known = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        try:
            self.generation_config = GMGenerationConfig.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
                path, **{key: value for key, value in kwargs.items() if key in known}
            )
        except OSError:
            self.generation_config = GMGenerationConfig()

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Any = None,
        x_0: Tensor | None = None,
        given: Any = None,
        class_labels: Tensor | Sequence[int] | None = None,
        batch_size: int | None = None,
        length: Any = None,
        max_new_tokens: int | None = None,
        num_steps: int | None = None,
        grid: str | Sequence[float] | None = None,
        sampler: str | None = None,
        max_expected_changes: float | None = None,
        tolerance: float | None = None,
        corrector: Corrector | dict[str, Any] | None = None,
        guidance_scale: float | None = None,
        generators: dict[str, Any] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer: Any = None,
        generation_config: GMGenerationConfig | None = None,
        return_dict_in_generate: bool | None = None,
        output_trajectory: bool | None = None,
    ) -> Any:
        """Samples by simulating the process from the prior (t = 0) to the data (t = 1).

        Of a product path: `batch_size` samples as a dict by field, in natural values where a field has a codec, of the
        `length` of each field or a dict by field. What is `given` comes back as it was, and the rest is drawn given it. Of a
        Euclidean path: `batch_size` samples [B, L, C] of `length` L; of a model with an `image_shape` images
        [B, C, H, W], of numbers or of symbols. Both by class where `class_labels` are given. Of sequences of symbols:

        Without `input_ids`: `batch_size` samples of `length` positions. With them: every mask symbol inside is a place to
        fill, and `max_new_tokens` more places follow each prompt (where it ends, if it is padded on the right). All other
        symbols come back as they were, and no mask symbol is left. What is known conditions a masked model exactly. With
        another prior the network is shown it at the noise of the time, as in training: an approximation.

        Args:
            input_ids: prompts [B, L], padded where `attention_mask` [B, L] is 0.
            x_0: of a coupled path: the sources [B, L'] from which to start, L' with the new positions. Without `input_ids`
                every position is free. Of a Euclidean path: the state to start from, in place of one from the prior.
            given: what is known. Of a product a dict by field of natural values, NaN, −1 or None where unknown, or of pairs
                of values and a mask of what is known (see `given.cells`). Of a Euclidean path such numbers or a pair. A
                model with independent times is told of fields that are known in all cells; everything else that is known is
                shown at the noise of the time.
            class_labels: long [B], −1 for no class.
            logits_processor: called as `processor(sequences [n, L], logits [n, K])` for n positions to fill, before
                temperature, top-k and top-p. The sequences are the noisy states.
            stopping_criteria: called with the sequences after every step; once it holds for all, one last step finishes.
            streamer: its `put` receives the prompts first, if they are as long as each other and without gaps; then its
                `put_draft` every unfinished state that differs from the one before, and its `put` the end, both of what
                follows the prompts.
            generation_config: in place of the model's; the other arguments are those of `GMGenerationConfig` and go first.

        Returns:
            Sequences [B, L], vectors [B, L, C] or images [B, C, H, W], or a dict of these; or a `GMGenerateOutput`.
        """
        defaults = self.generation_config if generation_config is None else generation_config
        if not isinstance(defaults, GMGenerationConfig):
            raise TypeError(f"generation_config is a {type(defaults).__name__}; give a GMGenerationConfig")
        several = isinstance(self.path, ProductPath)
        config = defaults.updated(
            length=None if several else length,
            max_new_tokens=max_new_tokens, num_steps=num_steps, grid=_listed(grid), sampler=sampler,
            max_expected_changes=max_expected_changes, tolerance=tolerance, corrector=corrector,
            guidance_scale=guidance_scale, generators=generators, temperature=temperature,
            top_k=top_k, top_p=top_p, seed=seed, return_dict_in_generate=return_dict_in_generate,
            output_trajectory=output_trajectory,
        )  # fmt: skip
        if self.whole_batches:
            raise ValueError("the weights are sharded over processes: load the saved model and generate with that")
        fitting = PRODUCT_STEPS if several else EUCLIDEAN_STEPS if isinstance(self.path, EuclideanPath) else STEPS
        if config.sampler not in fitting:
            raise ValueError(
                f"sampler={config.sampler!r} does not fit {self.path!r}; choose one of {', '.join(fitting)}"
            )
        labels = None if class_labels is None else torch.as_tensor(class_labels)
        if labels is not None:
            if input_ids is None and x_0 is None and given is None:
                batch_size = batch_size or labels.numel()
        elif config.guidance_scale not in (None, 1.0):
            raise ValueError("guidance_scale needs class_labels to guide towards")
        rng = torch.Generator(device=self.device)
        rng.manual_seed(int(torch.randint(2**62, ())) if config.seed is None else config.seed)
        of_symbols = {"input_ids": input_ids, "logits_processor": logits_processor}
        if several:
            watching = {
                "max_new_tokens": max_new_tokens or None,
                "x_0": x_0,
                "streamer": streamer,
                "stopping_criteria": stopping_criteria,
                "output_trajectory": config.output_trajectory or None,
            }
            if unfit := [name for name, value in {**of_symbols, **watching}.items() if value is not None]:
                raise ValueError(f"{', '.join(unfit)}: of states with a single field; give what is known as given")
            return self._generate_fields(
                config, given, attention_mask, labels, batch_size, config.length if length is None else length, rng
            )
        if isinstance(self.path, EuclideanPath):
            of_symbols["attention_mask"] = attention_mask
            if unfit := [name for name, value in of_symbols.items() if value is not None]:
                raise ValueError(f"{', '.join(unfit)}: of symbols, and this model is of numbers")
            known, source = None if given is None else cells(given, self.state_fields[""], ""), None
            if known is not None:
                if x_0 is not None or batch_size is not None or length is not None:
                    raise ValueError("given takes the place of x_0, batch_size and length")
                x_0 = self.path.prior(known.state.shape, rng, self.device)
            state = self._noise(config, x_0, batch_size, length, rng)
            fixed = torch.zeros_like(state, dtype=torch.bool) if known is None else known.known.to(self.device)
            known = state if known is None else known.state.to(self.device)
            state = torch.where(fixed, known, state)
            attention_mask, processors, shown, prompted = None, None, 0, bool(fixed.any())
        else:
            if given is not None:
                raise ValueError(
                    "given is of numbers and of several fields; give symbols as input_ids, with masks to fill"
                )
            if x_0 is not None and input_ids is None:
                if batch_size is not None or length is not None:
                    raise ValueError("batch_size and length are those of x_0")
                if not isinstance(x_0, Tensor) or x_0.dim() != 2:
                    raise ValueError(f"x_0 must be a long tensor [B, L], got {type(x_0).__name__}")
                batch_size, config = x_0.shape[0], config.updated(length=x_0.shape[1])
            known, fixed, attention_mask = self._canvas(
                config, input_ids, attention_mask, batch_size, length, max_new_tokens
            )
            source = None if x_0 is None else x_0.to(self.device)
            self.path.check_source(source, known, torch.zeros(len(known)))
            start = self.path.prior(known.shape, rng, self.device) if source is None else source
            state = torch.where(fixed, known, start)
            if known.shape[1] > self.config.max_position_embeddings and not self.config.image_shape:
                trained = self.config.max_position_embeddings
                logger.warning_once(
                    f"{known.shape[1]} positions; the model is made for max_position_embeddings={trained}"
                )
            shown, processors = _common_prompt(fixed), config.processors(logits_processor)
            prompted = self.path.rates != "masked" and bool((fixed & (attention_mask == 1)).any())
        if labels is not None:
            self.config.check_classes(labels, len(state))
            labels = labels.to(self.device)
        recorder = Recorder(state, fixed) if config.output_trajectory else None
        conditioning = {
            "attention_mask": None if attention_mask is None or bool(attention_mask.all()) else attention_mask,
            "logits_processor": processors if recorder is None else recorder.behind(processors),
            "class_labels": labels,
            "guidance_scale": config.guidance_scale,
            "generators": config.generators,
        }
        if streamer is not None and shown:
            streamer.put(known[:, :shown].cpu())
        watch = Watch(streamer, stopping_criteria, shown, recorder)
        model = _Prompted(self, known, fixed, source, rng) if prompted else self
        path = self.path
        if config.generators is not None and isinstance(path, EuclideanPath):
            path = path.reweighted(config.generators)
        times, step = config.times(path, watch.of_grid), config.step()
        training = self.training
        self.eval()
        try:
            run = simulate(model, state, times, rng, step, fixed, on_step=watch, return_info=True, **conditioning)
            if watch.stopped_at is not None:
                rest = torch.tensor([watch.stopped_at, 1.0], dtype=torch.float64)
                last = simulate(model, run.x, rest, rng, step, fixed, on_step=watch, return_info=True, **conditioning)
                run = run.then(last)
        finally:
            self.train(training)
        if streamer is not None:
            streamer.put(run.x[:, shown:].cpu())
            streamer.end()
        end = run.x
        if self.config.image_shape:
            end = end.unflatten(1, self.config.image_shape) if end.dim() == 2 else end
        if not config.return_dict_in_generate:
            return end
        trajectory = None if recorder is None else recorder.trajectory(end.shape)
        return GMGenerateOutput(end, run.network_calls, run.jumps, run.error_bound, attention_mask, trajectory)

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

    def _canvas(
        self,
        config: GMGenerationConfig,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        batch_size: int | None,
        length: int | None,
        max_new_tokens: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(symbols, which of them are fixed, attention mask), each [B, L]."""
        if input_ids is None:
            if attention_mask is not None or max_new_tokens:
                raise ValueError(
                    "attention_mask and max_new_tokens go with input_ids; use length and batch_size instead"
                )
            if batch_size is not None and batch_size < 1:
                raise ValueError(f"batch_size={batch_size} must be at least 1")
            if length is not None and self.config.image_shape:
                raise ValueError("length is of sequences; the images of this model have image_shape")
            shape = (batch_size or 1, *self.config.state_shape(config.length or self.config.max_position_embeddings))
            empty = torch.zeros(shape, dtype=torch.long, device=self.device)
            return empty, empty.bool(), torch.ones_like(empty)
        if batch_size is not None or length is not None:
            raise ValueError("batch_size and length are those of input_ids; use max_new_tokens to add positions")
        if not isinstance(input_ids, Tensor):
            raise TypeError(
                f"input_ids is a {type(input_ids).__name__}; give a tensor [B, L], as a tokenizer returns it"
            )
        ids = input_ids.to(self.device)
        real = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self.device).long()
        if real.shape != ids.shape:
            raise ValueError(f"attention_mask has shape {tuple(real.shape)}; input_ids has {tuple(ids.shape)}")
        self.path.check(ids.cpu(), torch.zeros(len(ids)), "input_ids")
        gaps = (
            torch.zeros_like(real) if self.config.mask_token_id is None else (ids == self.config.mask_token_id).long()
        )
        new = torch.ones(len(ids), config.max_new_tokens, dtype=torch.long, device=self.device)
        ids, real, gaps = (torch.cat(pair, 1) for pair in ((ids, 0 * new), (real, new), (gaps, new)))
        # Padding between a prompt and its new positions moves behind both; padding on the left stays.
        trailing = (real.flip(1)[:, config.max_new_tokens :].cumsum(1) == 0).flip(1).long()
        order = torch.cat([trailing, 0 * new], 1).argsort(dim=1, stable=True)
        ids, real, gaps = (state.gather(1, order) for state in (ids, real, gaps))
        pad = config.pad_token_id if config.pad_token_id is not None else self.config.pad_token_id
        ids = ids if pad is None else torch.where(real == 0, pad, ids)
        return ids, (gaps == 0) | (real == 0), real


class _Prompted:
    """The model, shown the fixed positions as the path would have noised them by the time t.

    A network for a prior without masks takes every symbol for as noisy as the time says, and would ignore a clean prompt.
    """

    def __init__(self, model: Any, known: Tensor, fixed: Tensor, source: Tensor | None, rng: torch.Generator) -> None:
        self.model, self.known, self.fixed, self.source, self.rng = model, known, fixed, source, rng
        self.path = model.path

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Generator:
        shown = torch.where(self.fixed, self.path.sample(self.known, t, self.rng, self.source), x)
        return self.model.generator(shown, t, t_next, **conditioning)


def _common_prompt(fixed: Tensor) -> int:
    """Number of positions that are fixed in every row, with free ones alone behind them; 0 if there is no such number."""
    given = int(fixed.all(0).long().cumprod(0).sum())
    return 0 if bool(fixed[:, given:].any()) else given


def _listed(grid: Any) -> Any:
    """Times as a list, anything else as it is."""
    return [float(time) for time in grid] if isinstance(grid, Sequence | Tensor) and not isinstance(grid, str) else grid
