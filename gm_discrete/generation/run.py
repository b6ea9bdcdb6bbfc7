"""`generate`: from a prompt, a text with gaps, a class, or nothing at all to finished sequences, vectors and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.observers import Observers
from gm_discrete.generation.outputs import GMGenerateOutput
from gm_discrete.generation.validation import check_allowed, check_fit
from gm_discrete.nn.config import GMConfig
from gm_discrete.paths import EuclideanPath, ProductPath
from gm_discrete.samplers import ClassifierGuidance, Corrector, Simulation, simulate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Base = PreTrainedModel
else:
    Base = object


class GMGenerationMixin(Base):
    """The generation methods of `GMModel`."""

    config: GMConfig
    path: Any
    whole_batches: bool
    generation_config: GMGenerationConfig
    _generate_fields: Any
    _generate_numbers: Any
    _generate_symbols: Any
    _canvas: Any

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
        order: str | None = None,
        order_temperature: float | None = None,
        entropy_bound: float | None = None,
        corrector: Corrector | dict[str, Any] | None = None,
        block_length: int | None = None,
        use_cache: bool | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        guidance_scale: float | None = None,
        guidance: str | None = None,
        predictor: ClassifierGuidance | None = None,
        generators: dict[str, Any] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        allowed_symbols: Tensor | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
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

        With `block_length`, and always with a model that has a `block_size`, positions are filled block by block, each from
        t = 0 to t = 1. A sequence ends with the block in which an `eos_token_id` was put behind its prompt: what follows
        that is padding, and the sequences that go on are computed alone.

        Args:
            input_ids: prompts [B, L], padded where `attention_mask` [B, L] is 0.
            x_0: of a coupled path: the sources [B, L'] from which to start, L' with the new positions. Without `input_ids`
                every position is free. Of a Euclidean path: the state to start from, in place of one from the prior.
            given: what is known. Of a product a dict by field of natural values, NaN, −1 or None where unknown, or of pairs
                of values and a mask of what is known (see `given.cells`). Of a Euclidean path such numbers or a pair. A
                model with independent times is told of fields that are known in all cells; everything else that is known is
                shown at the noise of the time.
            class_labels: long [B], −1 for no class.
            predictor: of a condition from noisy states, towards which the rates are tilted (`samplers.ClassifierGuidance`).
            allowed_symbols: bool [L, K] or [B, L, K], symbols that a position may hold: L counts the prompt and what is new,
                before a sequence ends early.
            logits_processor: called as `processor(sequences [n, L], logits [n, K])` for n positions to fill, before
                temperature, top-k and top-p. The sequences are the noisy states. A processor with the further arguments
                `time` and `position` is told the times [n] and the indices [n] into the flattened states.
            stopping_criteria: called with the sequences after every step; once it holds for all, one last step finishes,
                in blocks that of the block, which is then the last.
            streamer: its `put` receives the prompts first, if they are as long as each other and without gaps; then its
                `put_draft` every unfinished state that differs from the one before, and its `put` the end, both of what
                follows the prompts; in blocks both block by block.
            generation_config: in place of the model's; the other arguments are those of `GMGenerationConfig` and go first.

        Raises:
            ValueError, TypeError: arguments are out of range, or do not fit each other, the path or the model; the message
                names them, and what does fit.

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
            max_expected_changes=max_expected_changes, tolerance=tolerance, order=order,
            order_temperature=order_temperature, entropy_bound=entropy_bound, corrector=corrector,
            block_length=block_length, use_cache=use_cache, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
            guidance_scale=guidance_scale, guidance=guidance, generators=generators, temperature=temperature,
            top_k=top_k, top_p=top_p, seed=seed, bad_words_ids=bad_words_ids, output_trajectory=output_trajectory,
            return_dict_in_generate=return_dict_in_generate,
        )  # fmt: skip
        if self.whole_batches:
            raise ValueError("the weights are sharded over processes: load the saved model and generate with that")
        of_one = {
            "input_ids": input_ids, "logits_processor": logits_processor, "max_new_tokens": max_new_tokens or None,
            "x_0": x_0, "streamer": streamer, "stopping_criteria": stopping_criteria, "predictor": predictor,
            "allowed_symbols": allowed_symbols, "output_trajectory": config.output_trajectory or None,
        }  # fmt: skip
        check_fit(
            self.path, self.config, config, {**of_one, "attention_mask": attention_mask, "given": given}, class_labels,
            {"guidance": guidance, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id},
        )  # fmt: skip
        labels = None if class_labels is None else torch.as_tensor(class_labels)
        if labels is not None and input_ids is None and x_0 is None and given is None:
            batch_size = batch_size or labels.numel()
        rng = torch.Generator(device=self.device)
        rng.manual_seed(int(torch.randint(2**62, ())) if config.seed is None else config.seed)
        training = self.training
        self.eval()
        try:
            if several:
                given_length = config.length if length is None else length
                return self._generate_fields(config, given, attention_mask, labels, batch_size, given_length, rng)
            watch = Observers(streamer, stopping_criteria)
            if isinstance(self.path, EuclideanPath):
                return self._generate_numbers(config, given, x_0, labels, batch_size, length, watch, rng)
            canvas, source = self._canvas(config, input_ids, attention_mask, x_0, batch_size, length, max_new_tokens)
            allowed = None
            if allowed_symbols is not None:
                never = [*self.path.excluded, self.config.mask_token_id]
                never += [words[0] for words in config.bad_words_ids or [] if len(words) == 1]
                never = [symbol for symbol in never if symbol is not None]
                allowed = check_allowed(allowed_symbols, ~canvas.fixed, self.config.vocab_size, never)
            return self._generate_symbols(
                config, canvas, source, labels, logits_processor, allowed, predictor, watch, rng
            )
        finally:
            self.train(training)

    def _checked(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Classes [B] on the model's device."""
        if labels is None:
            return None
        self.config.check_classes(labels, batch)
        return labels.to(self.device)

    def _simulated(
        self,
        model: Any,
        path: Any,
        state: Tensor,
        fixed: Tensor | None,
        config: GMGenerationConfig,
        step: Any,
        watch: Observers,
        rng: torch.Generator,
        conditioning: dict[str, Any],
    ) -> Simulation:
        """The whole process from t = 0 to t = 1; in one step from where the stopping criteria hold."""
        times = config.times(path, watch.of_grid)
        run = simulate(model, state, times, rng, step, fixed, on_step=watch, return_info=True, **conditioning)
        if watch.stopped_at is not None:
            rest = torch.tensor([watch.stopped_at, 1.0], dtype=torch.float64)
            last = simulate(model, run.x, rest, rng, step, fixed, on_step=watch, return_info=True, **conditioning)
            run = run.then(last)
        return run

    def _answer(
        self, config: GMGenerationConfig, end: Tensor, run: Simulation, real: Tensor | None, watch: Observers
    ) -> Any:
        """What `generate` returns."""
        if self.config.image_shape:
            end = end.unflatten(1, self.config.image_shape) if end.dim() == 2 else end
        if not config.return_dict_in_generate:
            return end
        trajectory = None if watch.recorder is None else watch.recorder.trajectory(end, real)
        return GMGenerateOutput(end, run.network_calls, run.jumps, run.error_bound, real, trajectory)


def _listed(grid: Any) -> Any:
    """Times as a list, anything else as it is."""
    return [float(time) for time in grid] if isinstance(grid, Sequence | Tensor) and not isinstance(grid, str) else grid
