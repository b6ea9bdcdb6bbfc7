"""Which options of `generate` fit which path, state and sampler: one table, checked before anything runs.

    python -m gm_discrete.generation.validation

prints it as Markdown.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gm_discrete.configurable import Configurable
from gm_discrete.generation.blocks import Blocks
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.nn.config import GMConfig
from gm_discrete.paths import FinitePath, Path
from gm_discrete.samplers import SAMPLERS, Sampler, kind_of, samplers_for
from gm_discrete.samplers.base import CONTINUOUS, DISCRETE, PRODUCT

TOKENS = ("masked", "reversal", "mixture", "kinetic")
"""Paths of one discrete field, by their rates."""
PATHS = (*TOKENS, CONTINUOUS, PRODUCT)
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

    def fits(self, column: str) -> bool:
        """Whether the option can be used where the column applies."""
        return column in (*self.paths, *self.samplers, *([IMAGES] * self.images), *([BLOCKS] * self.blocks))


def _sampler_option(name: str) -> Option:
    """The row of a sampler, from what its class says that it simulates."""
    kind = SAMPLERS[name.split()[0]]
    rates = ("masked",) if name == ORDERED else kind.rates or TOKENS
    paths = [path for path in TOKENS if DISCRETE in kind.states and path in rates]
    if name != ORDERED:
        paths += [path for path in (CONTINUOUS, PRODUCT) if path in kind.states]
    in_blocks = "masked" in paths
    return Option(f"sampler={name}", tuple(paths), (name,), images=True, blocks=in_blocks)


OPTIONS = (
    Option("input_ids", TOKENS, cure="give the observed values as given"),
    Option(
        "max_new_tokens", TOKENS, images=False, needs=("input_ids",),
        cure="length is the number of positions of samples without a prompt",
    ),
    Option(
        "attention_mask", (*TOKENS, PRODUCT), images=False, needs=("input_ids",),
        cure="only prompts, and the fields of a product, are padded",
    ),
    Option("given", (CONTINUOUS, PRODUCT), cure="give tokens as input_ids, with mask tokens where they are to be filled"),
    Option(
        "x_0", ("mixture", CONTINUOUS), blocks=False, excludes=("given",),
        cure="only the process of a continuous or a coupled path, MixturePath(…, coupled=True), starts from a given state",
    ),
    Option("length", images=False, excludes=("input_ids",), cure="max_new_tokens adds positions to a prompt"),
    Option("temperature", (*TOKENS, PRODUCT), cure="only discrete states have a posterior with a temperature"),
    Option("top_k", (*TOKENS, PRODUCT), cure="only discrete states have a posterior to truncate"),
    Option("top_p", (*TOKENS, PRODUCT), cure="only discrete states have a posterior to truncate"),
    Option(
        "bad_words_ids", ("masked",),
        cure="tokens of other paths change together until the end; logits_processor=[AllowedTokens(mask)] fits them",
    ),
    Option("logits_processor", TOKENS, cure="temperature, top_k and top_p apply to the discrete fields of a product"),
    Option("stopping_criteria", (*TOKENS, CONTINUOUS), cure="choose num_steps"),
    Option("streamer", (*TOKENS, CONTINUOUS), cure="leave it out"),
    Option("output_trajectory", (*TOKENS, CONTINUOUS), cure="leave it out"),
    Option("class_labels", needs=("num_classes",)),
    Option("guidance_scale", needs=("class_labels",)),
    Option(
        "guidance", ("masked", "reversal"), ("tau_leaping", "euler"), blocks=False, excludes=("corrector",),
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
        cure="only block-causal attention leaves keys and values of finished blocks as they are",
    ),
    Option("eos_token_id", ("masked",), images=False, needs=("blocks",), cure="give blocks=Blocks(length)"),
    Option("pad_token_id", TOKENS, images=False, cure="only sequences of tokens are padded"),
    *(_sampler_option(name) for name in NAMES),
)  # fmt: skip
"""The rows; an option that is not among them fits everywhere."""


def column_of(path: Path) -> str:
    """The column of a path: the rates of a discrete one, else the kind of its states."""
    kind = kind_of(path)
    if kind != DISCRETE:
        return kind
    rates = getattr(path, "rates", None)
    return rates if rates in TOKENS else "kinetic"  # a path of your own has rates by transport unless it says otherwise


def sampler_column(sampler: Sampler) -> str:
    """The column of a sampler."""
    return ORDERED if sampler.type_name == "tau_leaping" and not sampler.keeps_distribution else sampler.type_name


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
    used = {name: value for name, value in arguments.items() if value is not None}
    for name in ("temperature", "top_k", "top_p", "bad_words_ids", "generators", "blocks"):
        if (value := getattr(config, name)) is not None:
            used[name] = value
    if config.guidance_scale not in (None, 1.0):
        used["guidance_scale"] = config.guidance_scale
    if config.output_trajectory:
        used["output_trajectory"] = True
    if (blocks is not None and blocks.cache) or config.use_cache:
        used["use_cache"] = True
    if config.corrector is not None:
        used[f"corrector={type(config.corrector).__name__}"] = config.corrector
    columns, sampler = {column_of(path): f"{type(path).__name__} ({_words(path)})"}, sampler_column(config.sampler)
    if sampler in NAMES:  # a sampler of your own has only its own check
        columns[sampler] = f"sampler={config.sampler!r}"
        used[f"sampler={sampler}"] = config.sampler
    if model.image_shape:
        columns[IMAGES] = f"image_shape={model.image_shape}"
    if blocks is not None:
        columns[BLOCKS] = f"blocks={blocks!r}"
    properties = {
        "input_ids": "input_ids" in used or column_of(path) == PRODUCT,
        "class_labels": "class_labels" in used,
        "blocks": blocks is not None,
        "num_classes": bool(model.num_classes),
        "time_conditioning=False": not model.time_conditioning,
        "block_size": model.block_size is not None,
    }
    for option in OPTIONS:
        if option.name not in used:
            continue
        shown, cure = _shown(option.name, used[option.name]), option.cure
        for column, text in columns.items():
            if not option.fits(column):
                if option.name.startswith("sampler="):
                    cure = f"choose one of {', '.join(samplers_for(path))}"
                raise ValueError(f"{shown} cannot be used with {text}; {cure}")
        for need in option.needs:
            if not properties[need]:
                raise ValueError(f"{shown} needs {need}" + (f"; {cure}" if cure else ""))
        for other in option.excludes:
            if any(name.partition("=")[0] == other for name in used):
                raise ValueError(f"{shown} cannot be combined with {other}; give one of them")
    if blocks is not None and model.block_size not in (None, blocks.length):
        raise ValueError(f"blocks={blocks!r} differs from the block_size={model.block_size} of the model; leave it out")


def _words(path: Path) -> str:
    """What the column of a path stands for."""
    column = column_of(path)
    return f"{column} states" if column in (CONTINUOUS, PRODUCT) else f"rates={column!r}"


def _shown(name: str, value: object) -> str:
    """An option and its value, where that is short."""
    short = isinstance(value, str | int | float | Configurable | list | tuple) and len(repr(value)) < 100
    return f"{name.partition('=')[0]}={value!r}" if short else name


def check_ids(path: FinitePath, mask_token_id: int | None, config: GMGenerationConfig) -> list[int]:
    """Checks the token ids of a config for a discrete state.

    Returns:
        The tokens that are never generated.

    Raises:
        ValueError: an id is not in the vocabulary, or the banned tokens leave none.
    """
    banned = [list(words) for words in config.bad_words_ids or []]
    eos, pad = config.eos_token_id, config.pad_token_id
    ids: dict[str, Sequence[object]] = {
        "eos_token_id": [] if eos is None else eos if isinstance(eos, list | tuple) else [eos],
        "pad_token_id": [] if pad is None else [pad],
        "bad_words_ids": functools.reduce(operator.iadd, banned, []),
    }
    for name, tokens in ids.items():
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < path.vocab_size:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} must hold ids below vocab_size={path.vocab_size}: is this the "
                    "model's tokenizer?"
                )
    never = {mask_token_id, *path.excluded, *(words[0] for words in banned if len(words) == 1)} - {None}
    if len(never) >= path.vocab_size:
        raise ValueError(f"bad_words_ids={config.bad_words_ids} leaves no token of the vocabulary; ban fewer")
    return [token for token in never if token is not None]


def markdown() -> str:
    """The table: ✓ where an option can be used, – where it is refused."""
    head = "| option | " + " | ".join(COLUMNS) + " | needs | not with |"
    lines = [head, "|---" * (len(COLUMNS) + 3) + "|"]
    for option in OPTIONS:
        cells = ["✓" if option.fits(column) else "–" for column in COLUMNS]
        lines.append(
            "| " + " | ".join([option.name, *cells, ", ".join(option.needs), ", ".join(option.excludes)]) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
