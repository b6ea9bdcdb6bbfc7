"""Which options of `generate` fit which path, state and sampler: one table, checked before anything runs.

    python -m gm_discrete.generation.validation

prints it as Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from gm_discrete.configurable import Configurable
from gm_discrete.generation.blocks import APPROXIMATE, Blocks
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.nn.config import GMConfig
from gm_discrete.paths import Path
from gm_discrete.samplers import SAMPLERS, kind_of, samplers_for
from gm_discrete.samplers.base import CONTINUOUS, DISCRETE, PRODUCT, STRINGS

TOKENS = ("masked", "reversal", "mixture", "kinetic")
"""Paths of one discrete field, by their rates."""
SEQUENCES = (*TOKENS, STRINGS)
PATHS = (*SEQUENCES, CONTINUOUS, PRODUCT)
ORDERED = "tau_leaping in an order"
NAMES = tuple(name for kind in SAMPLERS for name in ((kind, ORDERED) if kind == "tau_leaping" else (kind,)))
"""Samplers by name; tau-leaping in a decoding order counts as one of its own."""
UNORDERED = tuple(name for name in NAMES if name not in (ORDERED, "entropy_bounded"))
"""Samplers that target the model distribution."""
IMAGES, BLOCKS = "images", "blocks"
COLUMNS = (*PATHS, IMAGES, *NAMES, BLOCKS)


@dataclass(frozen=True)
class Option:
    """One row of the table.

    Attributes:
        name: of an argument of `generate`, or `argument=value` if it is about one of its values.
        paths: columns of `PATHS` that it fits; samplers: columns of `NAMES`.
        images, blocks: whether it fits states with an image_shape, and generation in blocks.
        needs: other arguments, or properties of the model, without which it has no meaning.
        excludes: arguments that cannot be given with it.
        cure: what to do instead.
    """

    name: str
    paths: tuple[str, ...] = PATHS
    samplers: tuple[str, ...] = NAMES
    images: bool = True
    blocks: bool = True
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    cure: str = ""

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that the option fits; samplers and blocks only if they fit one of its paths."""
        found = {*self.paths, *(name for name in self.samplers if {*self.paths} & {*_simulated(name)})}
        found |= {IMAGES} if self.images else set()
        return frozenset(found | ({BLOCKS} if self.blocks and "masked" in self.paths else set()))


def _simulated(name: str) -> tuple[str, ...]:
    """The columns of the paths that a sampler simulates, from the attributes of its class."""
    kind = SAMPLERS[name.split()[0]]
    rates = ("masked",) if name == ORDERED else kind.rates or TOKENS
    tokens = [path for path in TOKENS if DISCRETE in kind.states and path in rates]
    return (*tokens, *(kind.states - {DISCRETE} if name != ORDERED else ()))


OPTIONS = (
    *(Option(f"sampler={name}", _simulated(name), (name,)) for name in NAMES),
    Option("input_ids", SEQUENCES, cure="give the observed values as given"),
    Option(
        "max_new_tokens", SEQUENCES, images=False, needs=("input_ids",),
        cure="length is the number of positions of samples without a prompt",
    ),
    Option(
        "attention_mask", (*SEQUENCES, PRODUCT), images=False, needs=("input_ids or start_from",),
        cure="only prompts, drafts and the fields of a product are padded",
    ),
    Option("given", (CONTINUOUS, PRODUCT), cure="give tokens as input_ids, with mask tokens where they are to be filled"),
    Option(
        "x_0", ("mixture", CONTINUOUS), blocks=False, excludes=("given",),
        cure="only the process of a continuous or a coupled path, MixturePath(…, coupled=True), starts from a given state; "
        "any starts from a noised one, start_from=Draft(x, time)",
    ),
    Option(
        "start_from", excludes=("x_0",), cure="it is noised with the process of the model",
    ),
    Option(
        "length", (*TOKENS, CONTINUOUS, PRODUCT), images=False, excludes=("input_ids",),
        cure="max_new_tokens adds positions to a prompt, and max_length limits the symbols of strings",
    ),
    Option(
        "max_length", SEQUENCES, images=False, excludes=("length",),
        cure="length is the number of positions of other sequences",
    ),
    Option("do_sample", (*SEQUENCES, PRODUCT), cure="only discrete states have a most likely value"),
    Option("temperature", (*SEQUENCES, PRODUCT), cure="only discrete states have a posterior with a temperature"),
    Option("top_k", (*SEQUENCES, PRODUCT), cure="only discrete states have a posterior to truncate"),
    Option("top_p", (*SEQUENCES, PRODUCT), cure="only discrete states have a posterior to truncate"),
    Option(
        "bad_words_ids", ("masked",),
        cure="tokens of other paths change together until the end; logits_processor=[AllowedTokens(mask)] fits them; for "
        "strings a processor of yours that sets the logits of single tokens to −inf",
    ),
    Option("logits_processor", SEQUENCES, cure="temperature, top_k and top_p apply to the discrete fields of a product"),
    Option("stopping_criteria", (*SEQUENCES, CONTINUOUS), cure="choose num_steps"),
    Option("streamer", (*SEQUENCES, CONTINUOUS), cure="leave it out"),
    Option("output_trajectory", (*SEQUENCES, CONTINUOUS), cure="leave it out"),
    Option("class_labels", needs=("num_classes",)),
    Option("guidance_scale", needs=("class_labels",)),
    Option(
        "guidance", ("masked", "reversal"), ("tau_leaping", ORDERED, "euler"), blocks=False, excludes=("corrector",),
        cure="Bayes' rule holds for the rates of a time reversal, in steps whose jump probability depends on the network: "
        "use MaskedPath or rates='reversal', with sampler='tau_leaping' or 'euler'",
    ),
    Option("generators", (CONTINUOUS, PRODUCT), cure="discrete states only jump"),
    Option(
        "corrector=DetailedBalance", TOKENS, UNORDERED, excludes=("guidance",),
        cure="correctors are for one discrete field, and a sampler that targets the model distribution: order='random'",
    ),
    Option(
        "corrector=ReMDM", ("masked",), ("tau_leaping",), excludes=("guidance",),
        cure="it needs a MaskedPath and sampler='tau_leaping' with order='random'",
    ),
    Option(
        "blocks", ("masked",), images=False, needs=("time_conditioning=False",),
        cure="finished blocks and unfinished ones have no time in common: use MaskedPath and time_conditioning=False",
    ),
    Option(
        "use_cache", ("masked",), images=False, needs=("block_size",), excludes=("guidance_scale",),
        cure="only block-causal attention leaves keys and values of finished blocks as they are; for other models "
        "Blocks(length, cache='prefix') or 'dual' approximates them",
    ),
    Option(
        "blocks=Blocks(cache='prefix' or 'dual')", ("masked",), images=False,
        needs=("time_conditioning=False", "no block_size"), excludes=("guidance_scale",),
        cure="block-causal attention has an exact cache: Blocks(block_size, cache='exact')",
    ),
    Option(
        "eos_token_id", ("masked",), images=False, needs=("blocks",),
        cure="sequences end only where a MaskedPath generates them in blocks",
    ),
    Option("pad_token_id", SEQUENCES, images=False, cure="only sequences of tokens are padded"),
    Option(
        "compile", (*TOKENS, CONTINUOUS, PRODUCT),
        cure="strings change their shape from step to step, and every shape would be compiled",
    ),
)  # fmt: skip
"""The rows; an option that is not among them fits everywhere. An error names the first that does not fit."""


def column_of(path: Path) -> str:
    """The column of a path: the rates of a discrete one, else the kind of its states."""
    kind = kind_of(path)
    if kind != DISCRETE:
        return kind
    return path.rates if path.rates in TOKENS else "kinetic"  # a user's path has rates by transport by default


def check_options(
    path: Path,
    model: GMConfig,
    config: GMGenerationConfig,
    arguments: Mapping[str, object],
    blocks: Blocks | None,
) -> None:
    """Checks every option of a call against the table.

    Args:
        arguments: those of `generate` that are not in its config, by name; `None` if not given.
        blocks: how the model generates in blocks; `None` if it does not.

    Raises:
        ValueError: options do not fit the path, the sampler or each other; the message names them, and what does fit.
    """
    corrector, sampler = config.corrector, config.sampler.type_name
    if sampler == "tau_leaping" and not config.sampler.keeps_distribution:
        sampler = ORDERED
    if sampler not in NAMES or path.space.entry_dims:  # no column of the table
        config.sampler.check(path)
    names = ("temperature", "top_k", "top_p", "bad_words_ids", "generators", "blocks", "guidance_scale", "corrector")
    used: dict[str, object] = {**arguments, **{name: getattr(config, name) for name in names}}
    used[f"sampler={sampler}"], used[f"corrector={type(corrector).__name__}"] = config.sampler, corrector
    used["do_sample"] = None if config.do_sample is None or config.do_sample else False
    used["compile"] = config.compile or None
    used["output_trajectory"] = config.output_trajectory or None
    cache = None if blocks is None else blocks.cache
    used["blocks=Blocks(cache='prefix' or 'dual')"] = blocks if cache in APPROXIMATE else None
    used["use_cache"] = (config.use_cache and cache not in APPROXIMATE) or cache == "exact" or None
    if config.guidance_scale == 1:
        used["guidance_scale"] = None
    path_column = column_of(path)
    columns = {path_column: path, sampler: config.sampler, IMAGES: model.image_shape, BLOCKS: blocks}
    properties = {
        "input_ids": used["input_ids"] is not None or path_column == PRODUCT,
        "input_ids or start_from": any(used[name] is not None for name in ("input_ids", "start_from"))
        or path_column == PRODUCT,
        "class_labels": used["class_labels"] is not None,
        "blocks": blocks is not None,
        "num_classes": bool(model.num_classes),
        "time_conditioning=False": not model.time_conditioning,
        "block_size": model.block_size is not None,
        "no block_size": model.block_size is None,
    }
    for option in OPTIONS:
        if (value := used.get(option.name)) is None:
            continue
        for column, of in columns.items():
            if of is not None and column in COLUMNS and column not in option.columns:
                cure = f"choose one of {', '.join(samplers_for(path))}" if value is config.sampler else option.cure
                raise ValueError(f"{_shown(option.name, value)} cannot be used with {_words(column, of)}; {cure}")
        for need in option.needs:
            if not properties[need]:
                cure = f"; {option.cure}" if option.cure else ""
                raise ValueError(f"{_shown(option.name, value)} needs {need}{cure}")
        for other in option.excludes:
            if used[other] is not None:
                raise ValueError(f"{_shown(option.name, value)} cannot be combined with {other}; give one of them")
    if corrector is not None:  # those of yours, and coupled paths, are not in the table
        corrector.check(path, config.sampler)
    if blocks is not None and model.block_size not in (None, blocks.length):
        raise ValueError(f"blocks={blocks!r} differs from the block_size={model.block_size} of the model; leave it out")


def _words(column: str, value: object) -> str:
    """What a column of a call stands for."""
    if isinstance(value, Path):
        column = f"{column} states" if column in (CONTINUOUS, PRODUCT) else f"rates={column!r}"
        return f"{type(value).__name__} ({column})"
    return f"{'sampler' if column in NAMES else 'image_shape' if column == IMAGES else column}={value!r}"


def _shown(name: str, value: object) -> str:
    """An option and its value, where that is short."""
    short = isinstance(value, str | int | float | Configurable | list | tuple) and len(repr(value)) < 100
    return f"{name.partition('=')[0]}={value!r}" if short else name


def markdown() -> str:
    """The table: ✓ where an option can be used, – where it is refused."""
    head = "| option | " + " | ".join(COLUMNS) + " | needs | not with |"
    lines = [head, "|---" * (len(COLUMNS) + 3) + "|"]
    for option in OPTIONS:
        cells = ["✓" if column in option.columns else "–" for column in COLUMNS]
        lines.append(
            "| " + " | ".join([option.name, *cells, ", ".join(option.needs), ", ".join(option.excludes)]) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
