"""Names of options that version 0.1 or transformers has, and what takes their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

from gm_discrete.generation.blocks import Blocks
from gm_discrete.samplers.removed import OLD_OPTIONS, REMOVED

logger = logging.get_logger(__name__)

RENAMED = {
    **OLD_OPTIONS,
    "block_length": "blocks=Blocks(32)",
    "predictor": "guidance=ClassifierGuidance(log_prob, scale=1.0)",
    "allowed_symbols": "logits_processor=[AllowedTokens(mask)]",
}
"""Arguments of version 0.1, and how they are given now."""
RENAMED_DEFAULTS = {
    "guidance": "guidance_scale=2.0, or as generate(…, guidance=ClassifierGuidance(log_prob)), which no file can hold"
}
"""Those that only the config does not take any more."""


_PROCESSOR = "logits_processor=[…], which takes those of transformers"
NOT_HERE = {
    "num_beams": "num_return_sequences=n and choose among the results",
    "num_beam_groups": "num_return_sequences=n and choose among the results",
    "stop_strings": "eos_token_id with blocks=Blocks(n), or stopping_criteria",
    "min_length": "max_length; all of it is filled",
    "min_new_tokens": "max_new_tokens; all of them are filled",
    "max_time": "stopping_criteria=[MaxTimeCriteria(…)]",
    "prefix_allowed_tokens_fn": "logits_processor=[AllowedTokens(mask)]",
    "suppress_tokens": "bad_words_ids=[[token], …]",
    "force_words_ids": "input_ids with these tokens in their places",
    "inputs": "input_ids",
    "inputs_embeds": "input_ids",
    "decoder_input_ids": "start_from=draft",
    **dict.fromkeys(
        ("past_key_values", "cache_implementation", "dual_cache"),
        "use_cache=True, of models with a block_size, or blocks=Blocks(32, cache='dual')",
    ),
    "output_scores": "output_trajectory=True",
    "output_logits": "output_trajectory=True, or a forward call",
    "output_hidden_states": "a forward call with output_hidden_states=True",
    "assistant_model": "sampler=Adaptive(…) or EntropyBounded(…), which save network calls",
    **dict.fromkeys(
        ("repetition_penalty", "no_repeat_ngram_size", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff",
         "sequence_bias", "renormalize_logits", "exponential_decay_length_penalty"), _PROCESSOR,
    ),
    "steps": "num_steps",
    "gen_length": "max_new_tokens",
    "threshold": "sampler=TauLeaping(order='confidence', threshold=0.9)",
    **dict.fromkeys(("remasking", "alg"), "sampler=TauLeaping(order='confidence'), 'margin' or 'entropy'"),
    "alg_temp": "sampler=TauLeaping(order=…, order_temperature=(a, a))",
}  # fmt: skip
"""Options of transformers' `generate`, and of LLaDA, Dream and Fast-dLLM, that do not exist here, and what takes their
place."""

NEUTRAL = {
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "length_penalty"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0.0),
    **dict.fromkeys(
        ("output_scores", "output_logits", "output_hidden_states", "output_attentions", "renormalize_logits",
         "early_stopping", "remove_invalid_values", "token_healing", "synced_gpus"), False,
    ),
}  # fmt: skip
"""Values with which options of transformers change nothing; they may be given."""


def has_effect(name: str, value: object) -> bool:
    """Whether an option that does not exist here would do something in transformers, where `None` does not either."""
    if value is None:
        return name not in NOT_HERE and name not in NEUTRAL
    return not (name in NEUTRAL and isinstance(value, int | float) and value == NEUTRAL[name])


def from_0_1(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `generation_config.json` of version 0.1 as those of this version; newer ones are not changed.

    Version 0.1 wrote the options of samplers side by side with all others. What this version has no more is replaced by what
    comes closest, with a warning.
    """
    options = dict(options)
    if isinstance(options.get("guidance"), str) and options.pop("guidance") == "raw":
        logger.warning("guidance='raw' does not exist any more; guidance_scale acts on the posterior")
    flat_form = "blocks" not in options and not isinstance(options.get("sampler"), Mapping)
    if flat_form and options.get("use_cache") is False:
        del options["use_cache"]  # in version 0.1 the default
    flat = ("max_expected_changes", "tolerance", "order", "order_temperature", "entropy_bound")
    own = {name: value for name in flat if (value := options.pop(name, None)) is not None}
    if isinstance(name := options.get("sampler", "tau_leaping"), str):
        if own.get("order") == "random" and name != "entropy_bounded":
            del own["order"]
        if name in REMOVED:
            logger.warning(f"sampler={name!r} does not exist any more; {REMOVED[name]!r} takes its place")
            name, own = REMOVED[name], {}
        options["sampler"] = {"type": "tau_leaping" if name == "ancestral" else name, **own}
    if (length := options.pop("block_length", None)) is not None:
        options["blocks"] = Blocks(length).to_dict()
    corrector = options.get("corrector")
    if isinstance(corrector, Mapping) and (kind := corrector.get("type")) in REMOVED:
        logger.warning(
            f"corrector={options.pop('corrector')} does not exist any more and is left out; use {REMOVED[kind]}"
        )
    if isinstance(grid := options.get("grid"), str) and grid in REMOVED:
        logger.warning(f"grid={grid!r} does not exist any more; {REMOVED[grid]!r} takes its place")
        options["grid"] = REMOVED[grid]
    return options
