"""`GMModel`: a transformer that predicts the generator of a Markov process, as a Hugging Face model.

The network itself is `nn.Network`, its lazy evaluation `nn.readout`, the loss `objective.loss`, and `generate` is
`generation.run`. What is here packs the arguments of a call into one form (dicts by field), has them checked
(`models.checks`), and unpacks.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Never, Self, Unpack, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from gm_discrete.generation import run
from gm_discrete.generation.blocks import Blocks
from gm_discrete.generation.config import GMGenerationConfig, TransformersOptions
from gm_discrete.generation.draft import Draft
from gm_discrete.generation.given import Given
from gm_discrete.generation.names import NOT_HERE, RENAMED, has_effect
from gm_discrete.generation.observers import Streamer
from gm_discrete.generation.request import Request
from gm_discrete.generators import Generator, Jump, Product
from gm_discrete.models.checks import check_arguments, check_embeds, check_segments, check_tensors, checked_batch
from gm_discrete.models.from_backbone import from_backbone
from gm_discrete.models.outputs import GMModelOutput
from gm_discrete.models.parts import network_of
from gm_discrete.models.pretrained import GMPreTrainedModel
from gm_discrete.nn.compiled import CompileOptions, compile_layers
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.language_models import language_model_class
from gm_discrete.nn.readout import LazyReadout, Network, OnRead
from gm_discrete.nn.readout import LogitsProcessor as Processor
from gm_discrete.nn.readouts import readouts
from gm_discrete.nn.tables import PathTables
from gm_discrete.objective import bregman, field_losses, generator_times, total_loss
from gm_discrete.paths import ContinuousPath, EditPath, Path
from gm_discrete.process import State, pack, pack_state
from gm_discrete.renamed import refuse_unknown
from gm_discrete.samplers import ClassifierGuidance, Corrector, Sampler


class GMModel(GMPreTrainedModel):
    """Transformer for the generator of a Markov process on token sequences [B, L], vectors [B, L, C], images [B, C, H, W],
    or states of several such fields.

    For tokens the output of the head is read as the distribution of z_i given all *other* tokens; x_i is a network input,
    too, which only the optimum ignores. `path.add_evidence` adds the log-likelihood of x_i to these logits, so that the
    sum is the posterior π of z_i, and stays one as κ → 1. `path.marginal` turns π into a generator. For continuous fields
    there is a head for each quantity that their generators are made of (`path.heads`).

    Args:
        config: path and sizes.

    >>> import torch
    >>> from gm_discrete import GMConfig, GMModel, MaskedPath
    >>> config = GMConfig(path=MaskedPath(5), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = GMModel(config)
    >>> x, t = torch.tensor([[0, 4, 2]]), torch.tensor([0.5])  # 4 is the mask
    >>> model(input_ids=x, time=t).logits.softmax(-1)[0, 1].round(decimals=2)
    tensor([0.2500, 0.2500, 0.2500, 0.2500, 0.0000], grad_fn=<RoundBackward1>)
    >>> model(input_ids=x, time=t, labels=torch.tensor([[0, 1, 2]])).loss.shape
    torch.Size([])
    """

    def __init__(self, config: GMConfig) -> None:
        if isinstance(config.backbone, dict):  # of the implementations of attention, those that the network has
            kind = language_model_class(config.network_config())
            for name in ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn"):
                setattr(self, name, getattr(kind, name))
        super().__init__(config)
        # Copied together, so that the fields refer to the copied path, into which this model's tables are loaded.
        self.path, self.state_fields = deepcopy((config.build_path(), config.state_fields))
        self.groups = config.groups
        if config.tie_word_embeddings and not ("" in self.state_fields and self.state_fields[""].is_token):
            raise ValueError(
                "tie_word_embeddings=True needs one discrete field with a position for each symbol; leave it out"
            )
        self.backbone, self.heads = network_of(config, self.state_fields)
        if config.tie_word_embeddings:
            name = next(name for name, module in self.named_modules() if module is self.backbone.embed_tokens)
            self._tied_weights_keys = {"heads.tokens.weight": f"{name}.weight"}
        self.path_tables = PathTables(self.path)
        # FSDP refuses names of blocks that a model does not have; a network of transformers adds its own.
        self._no_split_modules = {"gm": ["Block"], "dit": ["DiTBlock"]}.get(str(config.backbone), [])
        self.whole_batches = False  # see `Network`; set where FSDP shards the weights
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel,
        path: Path | str = "masked",
        shift: bool | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> Self:
        """A model whose network is that of a pretrained language model of transformers, a decoder or an encoder.

        Attention goes in both directions. On a masked path the mask is that of the tokenizer, or a new symbol.

        Args:
            backbone: a folder, a name on the hub, or a `…ForCausalLM` or `…ForMaskedLM`, which is copied.
            path: `"masked"`, `"uniform"`, `"edits"`, or a path with at least as many symbols as the language model. The
                blank of `"edits"`, whose embedding also marks the start of a string, is the padding token of the tokenizer
                (without one, of the language model's config), or else a new symbol. A decoder that was trained to start
                from a token of its own reads that one with `EditPath(…, blank_token_id=bos_token_id)`.
            shift: whether the prediction of a position is read at the one before it; by default so for decoders, but for an
                `EditPath`: there the gap after a position starts with the decoder's prediction of the next token.
            tokenizer: gets a mask and a padding token, in place, where it has none (see `data.ensure_mask_token`). The model
                then has a symbol for each of its tokens, and `pad_token_id`, `bos_token_id` and `eos_token_id`. Rows that
                are added to the embedding are the mean of the others, and so is a spare row that becomes the mask's.
                Without a tokenizer the mask is the `mask_token_id` of the language model's config, or else one new symbol,
                the last.
            options: arguments of `GMConfig`; and those of `from_pretrained`: dtype, attn_implementation, device_map,
                quantization_config, gguf_file, revision, subfolder, token, cache_dir, local_files_only.

        Raises:
            ValueError: it is no language model of text, its logits are computed in an unknown way, or arguments do not fit
                each other.

        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes))
        >>> model = GMModel.from_backbone(llama, max_position_embeddings=8)
        >>> model.config.vocab_size, model.config.mask_token_id, model.config.shift
        (11, 10, True)
        >>> model.generate(num_steps=4).shape
        torch.Size([1, 8])
        """
        return from_backbone(cls, backbone, path, shift, tokenizer, options)

    @property
    def network(self) -> Network:
        """Backbone and heads. Made anew at each access, as wrappers may have replaced the modules."""
        return Network(self.path, self.state_fields, self.groups, self.backbone, self.heads, self.whole_batches)

    def forward(
        self,
        input_ids: Tensor | None = None,
        time: Tensor | None = None,
        attention_mask: Tensor | State | None = None,
        labels: Tensor | State | None = None,
        num_items_in_batch: Tensor | float | Mapping[str, Tensor | float] | None = None,
        divergence: bregman.Choice | None = None,
        return_dict: bool | None = None,
        *,
        input_values: Tensor | None = None,
        fields: State | None = None,
        class_labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> GMModelOutput | tuple:
        """The outputs of the heads at noisy states x, or the loss if labels are given.

        Args:
            input_ids: noisy tokens x [B, L]; of images [B, C·H·W].
            time: t [B] in [0, 1], or [B, M] for fields with independent times. May be left out for a masked model without
                time conditioning, unless labels are given; so pipelines of transformers, which pass no time, run such
                models alone. For others 1 is the time of data, and t with κ(t) the share of tokens that are no mask
                (`path.schedule.inverse`) that of a sequence with masks.
            attention_mask: [B, L], 0 where padded; different positive numbers are of different documents.
            labels: clean data of the state's shape; −100 (NaN for continuous states) where an entry is not scored.
            num_items_in_batch: what the summed loss is divided by; the number of scored entries by default.
            divergence: in place of `config.divergence`.
            input_values: in place of `input_ids` for a continuous path: x [B, L, C] or [B, C, H, W].
            fields: in place of `input_ids` for a product path: x by field. attention_mask, labels, num_items_in_batch and
                divergence are then by field, too.
            class_labels: long [B], −1 for no class.
            inputs_embeds: [B, L, D] in place of the embedding of `input_ids`. The logits are those of a posterior at noisy
                symbols, and need `input_ids` as well.
            output_hidden_states: return the hidden states of all layers; by default `config.output_hidden_states`.
            output_attentions: not supported; `None` or False.
            token_type_ids: [B, L], the segments that tokenizers such as BERT's number: of no effect, as all text is one.
            return_dict: False for a tuple; by default `config.return_dict`.

        Returns:
            With labels `.loss`, else `.last_hidden_state` and `.logits` or `.velocity` (see `GMModelOutput`).

        Raises:
            ValueError: an argument does not fit the model; the message names it.
        """
        path, config, symbols = self.path, self.config, input_ids is not None or inputs_embeds is None
        if output_attentions or config.output_attentions:
            raise ValueError("output_attentions=True: attention weights are not returned; leave it out")
        if token_type_ids is not None:
            check_segments(token_type_ids)
        if inputs_embeds is not None:
            check_embeds(self, inputs_embeds, input_ids, labels)
            if not symbols:  # of no effect
                input_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        return_dict = config.return_dict if return_dict is None else return_dict
        recorded = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        given = {"input_ids": input_ids, "input_values": input_values, "fields": fields}
        given = {name: state for name, state in given.items() if state is not None}
        if given.keys() != {path.state_name}:
            found = ", ".join(given) or "none"
            raise ValueError(f"give the state as {path.state_name}, which is what {path!r} needs; got {found}")
        x = pack_state(path, given[path.state_name], path.state_name)
        if time is None:
            if labels is not None or config.time_conditioning or not path.is_masked:
                raise ValueError(
                    "time is missing: pass time=t in [0, 1], of shape [B], or [B, M] where fields have independent times. "
                    "Pipelines of transformers pass none: call the model itself, for features of data with time=1"
                )
            time = torch.zeros(x[""].shape[0], dtype=torch.float64, device=x[""].device)
        check_tensors(self, {"time": time})
        masks, times = None if attention_mask is None else pack(attention_mask), generator_times(path, time)
        data = None if labels is None else pack_state(path, labels, "labels")
        z, scored = checked_batch(self, x, times, masks, data, class_labels, path.state_name)
        columns: State = x  # of an alignment, if the state is a string, and so those of the labels
        if (strings := path.strings) is not None:
            mask = cast("Tensor | None", attention_mask)
            columns = {"": strings.without_padding(x[""], mask)}
            x, z = (
                {"": cast(EditPath, path).packed(columns[""])},
                {name: strings.without_padding(data, mask) for name, data in z.items()},
            )
            masks = None
        now = {}  # values of the schedules at the times, computed once for all that follows
        for name, field in path.fields.items():
            now[name] = field.at(times[name], per_kappa=True)
        clean = z if config.block_size and labels is not None else None
        heads = readouts(self.network, x, time, now, attention_mask=masks, class_labels=class_labels, clean=clean)
        if labels is None:
            hidden = next(iter(heads.values())).hidden
            hidden.embeds, hidden.record = inputs_embeds, [] if recorded else None
            hidden.compute()  # of all sequences, whatever the heads would need
            output = self._head_outputs(heads, symbols)
            return output if return_dict is not False else output.to_tuple()
        # The backbone runs before any chunk of a head: backward recomputes chunks, and must not recompute what they share.
        hidden = heads[next(iter(heads))].hidden
        hidden.compute() if len(x) == 1 else hidden.final()
        predicted: dict[str, Any] = {}
        for name, field in path.fields.items():
            predicted[name] = field.marginal(heads[name], x[name], now[name], check=False)
        counts = None if num_items_in_batch is None else pack(num_items_in_batch)
        kinds, weights = config.divergence if divergence is None else divergence, config.loss_weights
        losses = field_losses(path, predicted, z, columns, time, scored, counts, kinds, weights, now)
        parts = None if "" in losses else {name: loss.detach() for name, loss in losses.items()}
        output = GMModelOutput(loss=total_loss(losses, weights), field_losses=parts)
        return output if return_dict is not False else output.to_tuple()

    def compile_layers(self, **options: Unpack[CompileOptions]) -> None:
        """Compiles the transformer's layers one by one, in place: every kind of layer once, for any number of sequences.

        `GMTrainer` does so with `TrainingArguments(torch_compile=True)`. Parameters keep their names, and copies and saved
        models are not compiled.

        Args:
            options: those of `torch.compile`.
        """
        compile_layers(self.backbone.layers, **options)

    def _head_outputs(self, heads: Mapping[str, LazyReadout], symbols: bool) -> GMModelOutput:
        """The outputs of all heads, at all entries; none where the input is not `symbols`, but embeddings alone."""
        logits, velocity = {}, {}
        for name, readout in heads.items():
            for head in readout.field.heads if symbols else ():
                if head in ("tokens", "belief"):
                    logits[name] = readout(head).unflatten(0, readout.shape)
                elif head == "flow":
                    velocity[name] = readout(head).view(readout.x.shape)
        hidden = next(iter(heads.values())).hidden
        final, record = hidden.final(), hidden.record
        return GMModelOutput(
            last_hidden_state=final,
            logits=logits.get("") if "" in heads else logits,
            velocity=velocity.get("") if "" in heads else velocity,
            hidden_states=None if record is None else (*record, final),
        )

    check = check_arguments
    """Checks the arguments of `generator`, and evaluates nothing. Entry points call it once before they start."""

    def generator(
        self,
        x: Tensor | State,
        t: Tensor,
        t_next: Tensor | None = None,
        attention_mask: Tensor | State | None = None,
        logits_processor: Processor | None = None,
        class_labels: Tensor | None = None,
        guidance_scale: float | None = None,
        generators: Mapping[str, Any] | None = None,
        network_time: Tensor | None = None,
        clean: Tensor | None = None,
        on_read: OnRead | None = None,
        **unknown: Never,
    ) -> Generator:
        """The marginal generator at x, or that of the step [t, t_next].

        For discrete states evaluation is lazy: the network runs when a kernel is first sampled or its log_probs are read.

        Args:
            x: states [B, …], of a product by field; t, t_next: times [B], or [B, M] of independent times.
            attention_mask: [B, L], 0 where padded; different positive numbers are of different documents.
            logits_processor: maps (sequences [n, L], logits [n, K]) to logits.
            class_labels: long [B], −1 for no class; guidance_scale: γ of classifier-free guidance, 1 for none.
            generators: other weights of a superposition (see `ContinuousPath.reweighted`); for a product by field.
            network_time: the times that the network is conditioned on, if they differ from t: [B, M], 1 for observed
                fields, 0 for unobserved ones.
            clean: for block-causal attention: the data [B, L] whose blocks precede each block of x; x itself by default.
            on_read: observes the posteriors that are evaluated (see `nn.readout.OnRead`).
        """
        self.check(
            x, "x", t, t_next, attention_mask, class_labels, guidance_scale, generators, network_time, clean, **unknown
        )
        path, state = self.path, pack_state(self.path, x, "x")
        single = "" in path.fields
        weights = {"": generators} if single and generators is not None else dict(generators or {})
        if others := weights.keys() - path.fields.keys():
            raise ValueError(f"generators names {', '.join(sorted(others))}; the fields are {', '.join(path.fields)}")
        masks = None if attention_mask is None else pack(attention_mask)
        if (strings := path.strings) is not None:
            x = strings.without_padding(state[""], cast("Tensor | None", attention_mask))
            state = {"": cast(EditPath, path).packed(x)}
            masks = None
        clock, then = path.times(t), None if t_next is None else path.times(t_next)
        times = {
            name: field.at(clock[name]) for name, field in path.fields.items()
        }  # values of schedules, computed once
        read = readouts(
            self.network, state, t if network_time is None else network_time, times, logits_processor, guidance_scale,
            attention_mask=masks, class_labels=class_labels,
            clean=None if clean is None else pack(clean), on_read=on_read,
        )  # fmt: skip
        found: dict[str, Any] = {}
        for name, field in path.fields.items():
            if name in weights:
                if field.is_discrete:
                    raise ValueError(
                        f"generators={generators} weighs the parts of a superposition, and {field!r} has a jump alone; "
                        "leave it out for discrete fields"
                    )
                field = cast(ContinuousPath, field).reweighted(weights[name])
            found[name] = field.marginal(
                read[name], state[name], times[name], None if then is None else then[name], check=False
            )
        return found[""] if "" in found else Product(found)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | Mapping[str, Tensor] | None = None,
        given: Given | Mapping[str, Given] = None,
        x_0: Tensor | None = None,
        start_from: Draft | Given | Mapping[str, Given] = None,
        class_labels: Tensor | Sequence[int] | None = None,
        batch_size: int | None = None,
        length: int | Mapping[str, int] | None = None,
        num_steps: int | None = None,
        grid: str | Sequence[float] | Tensor | None = None,
        sampler: Sampler | str | Mapping[str, Any] | None = None,
        corrector: Corrector | str | Mapping[str, Any] | None = None,
        blocks: Blocks | Mapping[str, Any] | None = None,
        guidance: ClassifierGuidance | None = None,
        generators: Mapping[str, Any] | None = None,
        seed: int | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        streamer: Streamer | None = None,
        generation_config: GMGenerationConfig | None = None,
        output_trajectory: bool | None = None,
        compile: bool | None = None,
        **options: Unpack[TransformersOptions],
    ) -> Any:
        """Samples by simulating the process from the prior (t = 0) to the data (t = 1).

        Token sequences: without `input_ids`, `batch_size` samples of `length` positions. With them, every mask token inside
        is filled, and so are `max_new_tokens` positions after each prompt (directly after its last token, also if it is
        padded on the right). All other tokens are returned unchanged, and no mask token is left. A masked model conditions
        on the prompt exactly. For other paths the prompt enters noised to the level of the time, as in training,
        which is an approximation.

        Strings (`EditPath`): without `input_ids`, `batch_size` samples that start from the prior. In prompts every run
        of `config.mask_token_id`, or of blanks where the config has none, is a hole, in which a text of any length,
        also none, is generated; blanks that `attention_mask` marks are padding, and without it blanks at the end are a
        hole, too. All other symbols are returned in their order, and nothing is inserted between two of them but in
        holes. Where a prompt has no hole, and with `max_new_tokens`, its end is open. With the uniform prior the holes
        start with as much noise as the prior's string is longer than the prompt, spread evenly. The network conditions
        on the prompt as on any symbols of a string: with the empty prior the posterior of the data does not depend on
        which of them were there from the start (with the uniform one it may take some for noise). That fixed symbols
        and closed gaps stay as they are is not conditioned on: their rates are set to 0. `max_length` (by default
        `config.max_position_embeddings`) is a hard limit on the whole string: insertions beyond are left out. Samples
        [B, longest] are padded with `pad_token_id`; `GMGenerateOutput.attention_mask` has their lengths. Temperature,
        top_k, top_p and processors act on the distributions of the symbols that edits write, not on rates: also with
        do_sample=False, which writes the most likely symbols, it is random which edits happen, and when.

        Vectors, images, products: `batch_size` samples [B, L, C] of `length` L, images [B, C, H, W], or a dict by field, in
        natural units where a field has a codec. Observed values (`given`) are returned unchanged, and the rest is sampled
        conditioned on them.

        Args:
            input_ids: prompts [B, L], padded where `attention_mask` [B, L] is 0.
            attention_mask: of prompts or drafts: 0 where padded, different positive numbers are of different documents, and
                new tokens belong to the last one of their prompt; for a product path a dict by field.
            given: observed values of a continuous state, NaN where unobserved, or a pair of values and a mask, true where
                observed; for a product path a dict by field of such values (see `generation.given.Observed.of`). Fields
                that are observed in all entries condition a model with independent times exactly; everything else observed
                is noised to the level of the time.
            x_0: the state to start from, in place of a draw from the prior: sources [B, L] of a coupled path, or noise of a
                continuous path.
            start_from: a draft that is revised in place, of whole samples: token ids [B, L] with those of the prompts,
                numbers, images, or a dict by field. It is noised to the time t of `Draft(values, time=t)`, by default 0.5,
                and the process goes on from there, by the rest of the grid. What is observed, by `input_ids` or `given`,
                stays, and mask tokens of the draft (NaN in numbers) are filled. Drafts that are strings hold the fixed
                symbols of their prompts, between holes in one part; these are not noised, and mask tokens are left out.
            class_labels: long [B], −1 for no class.
            batch_size: number of samples; by default that of the other arguments, or 1.
            length: positions of samples without prompt, or a dict by field; by default the length of training.
            num_steps, grid, sampler, corrector, blocks, generators, seed, output_trajectory, compile: see
                `GMGenerationConfig`.
            guidance: a classifier of noisy states, towards whose class the jump rates are tilted.
            logits_processor: list of functions (sequences [n, L], logits [n, K]) → logits for n positions to fill, applied
                before temperature, top-k and top-p; the sequences are noisy states. A processor with arguments `time` and
                `position` is also given the times [n] and the indices [n] into the flattened states, or of strings into
                their entries [B, 2 (L + 1)] (see `generators.strings`). `AllowedTokens` limits which tokens a position may
                hold.
            stopping_criteria: evaluated on the sequences after every step. When they hold for all, one last step goes to
                t = 1; in generation by blocks the current block is the last.
            streamer: receives (`put`) the prompts, if they have equal lengths and no gaps, and then the samples; a streamer
                with `put_draft` also every intermediate state that differs from the one before. By blocks in generation by
                blocks.
            generation_config: in place of the model's; arguments of the call go before it.
            options: the names that transformers' `generate` has, with its meaning: max_new_tokens, max_length,
                num_return_sequences, do_sample, temperature, top_k, top_p, guidance_scale, use_cache, eos_token_id,
                pad_token_id, bad_words_ids, return_dict_in_generate (see `GMGenerationConfig`).

        Raises:
            ValueError: arguments are out of range, or do not fit each other, the path or the model; the message names them.
            TypeError: an argument does not exist, or has the wrong type.

        Returns:
            The samples, or a `GMGenerateOutput` with `return_dict_in_generate=True`.

        >>> import torch
        >>> from gm_discrete import Adaptive, EditPath, GMConfig, GMModel, MaskedPath
        >>> model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        >>> model.generate(batch_size=3, length=4, num_steps=8).shape
        torch.Size([3, 4])
        >>> prompt = torch.tensor([[1, 4, 2]])  # 4 is the mask token
        >>> sample = model.generate(prompt, max_new_tokens=2, sampler=Adaptive(max_expected_changes=2.0))
        >>> sample[0, [0, 2]].tolist(), sample.shape, bool((sample == 4).any())
        ([1, 2], torch.Size([1, 5]), False)
        >>> path = EditPath(5)  # 4 is the blank
        >>> model = GMModel(GMConfig(path=path, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        >>> sample = model.generate(prompt, max_length=8, num_steps=8)  # 1, a text of any length, 2
        >>> sample[0, 0].item(), sample[0, -1].item(), sample.shape[1] <= 8
        (1, 2, True)
        """
        config = self.generation_config if generation_config is None else generation_config
        if not isinstance(config, GMGenerationConfig):
            raise TypeError(f"generation_config is a {type(config).__name__}; give a GMGenerationConfig")
        if unknown := options.keys() - TransformersOptions.__annotations__.keys():
            known = {*inspect.signature(GMModel.generate).parameters, *TransformersOptions.__annotations__} - {"self"}
            effective = [name for name in sorted(unknown) if has_effect(name, options[name])]
            refuse_unknown(effective, "generate", {**RENAMED, **NOT_HERE}, known)
        changes = dict(
            {name: value for name, value in options.items() if name not in unknown},
            length=length, num_steps=num_steps, grid=grid, sampler=sampler, corrector=corrector, blocks=blocks,
            generators=generators, seed=seed, output_trajectory=output_trajectory, compile=compile,
        )  # fmt: skip
        request = Request.of(
            self, config.updated(changes), input_ids=input_ids, attention_mask=attention_mask, given=given, x_0=x_0,
            start_from=start_from, class_labels=class_labels, batch_size=batch_size, length=length, guidance=guidance,
            logits_processor=logits_processor, stopping_criteria=stopping_criteria, streamer=streamer,
            eos_token_id=options.get("eos_token_id"), pad_token_id=options.get("pad_token_id"),
            max_new_tokens=options.get("max_new_tokens") or None,
        )  # fmt: skip
        return run.generate(self, request)

    def rates(
        self,
        x: Tensor,
        t: Tensor,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Dense rate matrices R [B, L, K] of the point t, in 1/time; on the diagonal (y = x) minus the row's sum.

        Args:
            x, t, attention_mask, class_labels, guidance_scale: those of `generator`.

        Raises:
            TypeError: the states are not discrete.
        """
        generator = self.generator(
            x, t, attention_mask=attention_mask, class_labels=class_labels, guidance_scale=guidance_scale
        )
        if not isinstance(generator, Jump):
            raise TypeError(f"only discrete states have a rate matrix, and {self.path!r} has none; its fields may")
        return generator.rates(x)


AutoConfig.register("gm_discrete", GMConfig)
AutoModel.register(GMConfig, GMModel)
AutoModelForMaskedLM.register(GMConfig, GMModel)
