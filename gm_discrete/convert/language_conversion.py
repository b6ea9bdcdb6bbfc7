"""From a folder of LLaDA, Dream or SDAR to a `GMModel` folder, one shard after another."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gm_discrete.convert.destination import written
from gm_discrete.convert.languages import LANGUAGES, Config, Language, is_tied, rows
from gm_discrete.convert.settings import positive
from gm_discrete.convert.shards import DTYPES, Weight, shard_names, weights_in, write_index, write_shard
from gm_discrete.convert.sources import Folder, read_settings
from gm_discrete.convert.tokenizers import KeptTokenizer, write_tokenizer
from gm_discrete.data.tokenizers import check_tokenizer, load_tokenizer
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.models import GMConfig, GMModel
from gm_discrete.models.card import Card
from gm_discrete.paths import MaskedPath

logger = logging.getLogger(__name__)

HEAD, EMBEDDING = "heads.tokens.weight", "backbone.network.embed_tokens.weight"
Shards = list[dict[str, Weight]]
"""The weights of each file, under their new names."""


def language_of(source: object, family: str | None) -> str | None:
    """The family of a folder of one of `LANGUAGES`, as given or else by the config; `None` if it is none of them."""
    kind = source.config().get("model_type") if isinstance(source, Folder) else None
    found = family or str(kind).lower()
    return found if found in LANGUAGES else None


def convert_language(
    source: Folder,
    destination: Path,
    family: str,
    mask_token_id: int | None,
    length: int | None,
    block_size: int | None,
) -> None:
    """Writes the folder of a published model as that of a `GMModel`.

    Types of weights are kept. In memory is a piece of one tensor at a time.

    Raises:
        ValueError: a file is damaged or truncated, a setting is missing or not implemented, a weight is missing, unknown, of
            another shape, or holds NaN.
        FileNotFoundError: there are no weights, or a shard is missing.
    """
    language, settings = LANGUAGES[family], source.config()
    with _readable(source, family):
        language.check(settings)
        network = language.backbone(settings)
    files = source.weights()
    if others := [file.name for file in files if file.suffix != ".safetensors"]:
        raise ValueError(
            f"source={str(source.path)!r} has {', '.join(others)}; {family} is read from safetensors files"
        )
    shards = _renamed([weights_in(file) for file in files], language, is_tied(settings))
    with _readable(source, family):
        config = _config(source, settings, language, network, shards, mask_token_id, length, block_size)
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in GMModel(config).state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop(HEAD, None)
    _check(shards, expected, source)
    logger.info("family: %s; backbone: %s; path: %r", family, network["model_type"], config.build_path())
    logger.info(
        "the prediction of a position is read at %s; length: %d",
        "the one before" if config.shift else "itself",
        config.max_position_embeddings,
    )
    with written(destination) as ready:
        tokens = write_tokenizer(source, ready, config.build_path().mask_token_id)  # pyright: ignore[reportAttributeAccessIssue]
        if tokens:
            _check_tokenizer(source, ready, config)
        logger.info("tokenizer: %s", "with the mask set" if tokens else "none beside the weights; save it here")
        config.save_pretrained(ready)
        generation = _generation(source, settings, language, tokens, config)
        generation.save_pretrained(ready)
        card = Card(base=settings.get("_name_or_path") or None, has_tokenizer=bool(tokens))
        (ready / "README.md").write_text(card.text(config, generation, _parameters(shards)), encoding="utf-8")
        names = shard_names(len(shards))
        for number, (name, weights) in enumerate(zip(names, shards, strict=True), 1):
            logger.info("weights: file %d of %d", number, len(shards))
            write_shard(ready / name, weights)
        if len(shards) > 1:
            write_index(ready, zip(names, shards, strict=True))


@contextmanager
def _readable(source: Folder, family: str) -> Iterator[None]:
    """Turns the errors of many kinds that wrong settings raise into one that names their folder."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"source={str(source.path)!r} is no {family} that can be converted: {message}") from error


def _renamed(files: list[list[Weight]], language: Language, tied: bool) -> Shards:
    """The weights of each file under their new names. Of tied ones the embedding is kept.

    Raises:
        ValueError: a weight is unknown, or in two files.
    """
    shards: Shards = []
    places: dict[str, Weight] = {}
    for weights in files:
        shard = {}
        for weight in weights:
            name = language.renamed(weight.name)
            if name is None:
                raise ValueError(
                    f"{weight.name} of source={str(weight.file)!r} is no weight of {language.architecture}"
                )
            if name in places:
                raise ValueError(f"{weight.name} of source={str(weight.file)!r} is also in {places[name].file.name}")
            shard[name] = places[name] = weight
        shards.append(shard)
    if tied and HEAD in places:
        for shard in shards:
            head = shard.pop(HEAD, None)
            if head is not None and EMBEDDING not in places:
                shard[EMBEDDING] = head
    return [shard for shard in shards if shard]


def _config(
    source: Folder,
    settings: Config,
    language: Language,
    network: dict[str, Any],
    shards: Shards,
    mask_token_id: int | None,
    length: int | None,
    block_size: int | None,
) -> GMConfig:
    mask = settings.get("mask_token_id") if mask_token_id is None else mask_token_id
    if mask is None and (tokenizer := KeptTokenizer.of_folder(source)) is not None:
        mask = tokenizer.mask_token_id()
    if mask is None:
        raise ValueError("mask_token_id is missing: neither config.json of source nor its tokenizer has one; give it")
    if not language.has_blocks and block_size is not None:
        raise ValueError(
            f"block_size={block_size} belongs to SDAR, and {language.architecture} has no blocks; leave it out"
        )
    if language.has_blocks:
        block_size = block_size or positive("block_size in config.json of source", settings.get("block_size"))
        if block_size is None:
            raise ValueError(
                "block_size is missing in config.json of source; give that of the model: 4 unless its name ends in another"
            )
    special = {name: _first(settings.get(name)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    types = {weight.dtype for shard in shards for weight in shard.values()}
    config = GMConfig(
        path=MaskedPath(rows(settings), mask),
        backbone=network,
        shift=language.shift,
        block_size=block_size,
        max_position_embeddings=length or min(language.length, network["max_position_embeddings"]),
        dtype=str(DTYPES[next(iter(types))]).removeprefix("torch.") if len(types) == 1 else None,
        **special,
    )
    config.architectures = [GMModel.__name__]
    return config


def _check(shards: Shards, expected: Mapping[str, tuple[int, ...]], source: Folder) -> None:
    """
    Raises:
        ValueError: a weight is missing or unexpected, or has another shape than its config needs.
    """
    found = {name: weight for shard in shards for name, weight in shard.items()}
    if missing := [name for name in expected if name not in found]:
        listed = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ValueError(f"source={str(source.path)!r} lacks weights: those of {listed}")
    for name, weight in found.items():
        if name not in expected:
            raise ValueError(f"{weight.name} of source={str(weight.file)!r} is unexpected: config.json describes none")
        if weight.shape != expected[name]:
            raise ValueError(
                f"{weight.name} of source={str(weight.file)!r} has shape {weight.shape}; config.json describes "
                f"{expected[name]}"
            )


def _parameters(shards: Shards) -> int:
    return sum(math.prod(weight.shape) for shard in shards for weight in shard.values())


def _check_tokenizer(source: Folder, ready: Path, config: GMConfig) -> None:
    """
    Raises:
        ValueError: the tokenizer that was written cannot be loaded, or has other ids than the model.
    """
    try:
        tokenizer = load_tokenizer(ready)
        check_tokenizer(tokenizer, vocab_size=config.vocab_size, mask_token_id=config.mask_token_id)
    except Exception as error:  # damaged files raise errors of many kinds
        raise ValueError(f"source={str(source.path)!r} has a tokenizer that does not fit its model: {error}") from error


def _generation(
    source: Folder, settings: Config, language: Language, tokens: Mapping[str, int], config: GMConfig
) -> GMGenerationConfig:
    """The options of the published example; the end of text is that of the source, and a token that ends an answer."""
    file = source.file("generation_config.json")
    found = {**settings, **({} if file is None else read_settings(file))}
    ends = found.get("eos_token_id")
    ends = [*ends] if isinstance(ends, list) else [] if ends is None else [ends]
    if (turn := tokens.get(language.end_of_turn)) is not None and turn not in ends:
        ends.append(turn)
    return GMGenerationConfig(
        **language.generation(config.block_size or 1),
        eos_token_id=ends or None,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
    )


def _first(token: object) -> Any:
    return token[0] if isinstance(token, list) and token else token
