"""Tokenizers for models with `vocab_size` ≥ `len(tokenizer)`, the mask included.

The ones trained here number the tokens of the text first and the special tokens after them, with `[MASK]` last, the default
`mask_token_id` of `MaskedPath`. All are fast tokenizers: `save_pretrained` writes a `tokenizer.json` that
`AutoTokenizer.from_pretrained` loads without this library.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

if TYPE_CHECKING:
    import sentencepiece

PAD, UNKNOWN, EOS, MASK = "[PAD]", "[UNK]", "[EOS]", "[MASK]"
METASPACE = "\u2581"
"""What sentencepiece writes for a space."""
SMILES_SYMBOL = r"\[[^\[\]]*\]|Br|Cl|%\d\d|%\(\d+\)|[\s\S]"
"""One symbol of SMILES (OpenSMILES 1.0, section 3): an atom in brackets, Br, Cl, a ring closure of two or more digits, or
any single character: every other atom, bond, branch, dot or ring closure."""
LINE = 1024
"""Characters of a training line: sentencepiece skips lines of more than 4192 bytes, and a character has at most 4."""


def character_tokenizer(texts: Iterable[str] = (), *, alphabet: str | None = None) -> PreTrainedTokenizerFast:
    """One id per character: those of `texts` in the order of their code points, or those of `alphabet` in its order.

    After them come `[UNK]`, for every other character, `[PAD]`, `[EOS]` and `[MASK]`.

    >>> tokenizer = character_tokenizer(["hello"])
    >>> tokenizer("hello!")["input_ids"], tokenizer.unk_token_id, tokenizer.mask_token_id, len(tokenizer)
    ([1, 0, 2, 2, 3, 4], 4, 7, 8)

    Raises:
        ValueError: there is no character, or `alphabet` holds a character twice.
    """
    symbols = list(alphabet) if alphabet is not None else sorted(set().union(*strings(texts)))
    if not symbols:
        raise ValueError("texts and alphabet hold no characters; pass the texts to be tokenised, or alphabet='abc…'")
    if len(set(symbols)) < len(symbols):
        raise ValueError(f"alphabet={alphabet!r} holds a character twice; give each one once")
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, UNKNOWN])}
    # A BPE without merges leaves text in characters, 4 times as fast as a WordLevel model after a splitting regex.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return with_special_tokens(tokenizer, unk_token=UNKNOWN)


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of UTF-8 bytes, as in GPT-2: decoding returns every text exactly.

    `vocab_size` counts the 256 bytes, the merges, `[PAD]`, `[EOS]` and `[MASK]`; texts too short for so many merges give a
    smaller vocabulary.

    Raises:
        ValueError: `vocab_size` leaves no room for the bytes and the special tokens.
    """
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    special_tokens = [PAD, EOS, MASK]
    if vocab_size < len(bytes_) + len(special_tokens):
        raise ValueError(f"vocab_size={vocab_size} must be at least {len(bytes_) + len(special_tokens)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(special_tokens), initial_alphabet=bytes_)
    tokenizer.train_from_iterator(strings(texts), trainer)
    return with_special_tokens(tokenizer)


def smiles_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One id per symbol of SMILES, those of `texts` in alphabetical order: `CC(=O)[O-]` is C, C, (, =, O, ), [O-].

    Then come `[UNK]`, for every other symbol, `[PAD]`, `[EOS]` and `[MASK]`.

    Raises:
        ValueError: there is no symbol.
    """
    split = pre_tokenizers.Split(Regex(SMILES_SYMBOL), "isolated")
    symbols = sorted({symbol for text in strings(texts) for symbol, _ in split.pre_tokenize_str(text)})
    if not symbols:
        raise ValueError("texts hold no symbol; pass the SMILES to be tokenised")
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return with_special_tokens(tokenizer, unk_token=UNKNOWN)


def sentencepiece_tokenizer(
    texts: Iterable[str], vocab_size: int, model_type: Literal["unigram", "bpe"] = "unigram"
) -> PreTrainedTokenizerFast:
    """Trains a sentencepiece model on the lines of `texts` and converts it to a fast tokenizer with the same ids.

    Text is not normalised, and characters without a piece become bytes, so that decoding returns the text exactly, except
    for U+2581 (it becomes a space) and, with "unigram", for the spelling `<0x41>` of a byte (it becomes that byte).
    `vocab_size` counts the pieces, the 256 bytes, `[UNK]`, `[PAD]`, `[EOS]` and `[MASK]`.

    Raises:
        ValueError: `model_type` is unknown, or these texts do not yield exactly `vocab_size` pieces.
    """
    if model_type not in ("unigram", "bpe"):
        raise ValueError(f"model_type={model_type!r} is unknown; choose 'unigram' or 'bpe'")
    processor = _train_sentencepiece(texts, vocab_size - len((PAD, EOS, MASK)), model_type)
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    if model_type == "unigram":
        scores = [processor.get_score(index) for index in range(len(pieces))]
        model = models.Unigram(list(zip(pieces, scores, strict=True)), processor.unk_id(), byte_fallback=True)
    else:
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        splits = ((piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece)))
        merges = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        model = models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(METASPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return with_special_tokens(tokenizer, unk_token=UNKNOWN)


def load_tokenizer(name_or_path: str | os.PathLike[str], **kwargs: object) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained(name_or_path, **kwargs)` with padding and mask tokens (see `ensure_mask_token`).

    Raises:
        OSError: there is no such folder or name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    except OSError as error:
        raise OSError(
            f"name_or_path={str(name_or_path)!r} is no folder of a tokenizer, and cannot be loaded from the hub either; "
            f"give a folder or a name on the hub ({str(error).splitlines()[0]})"
        ) from error
    return ensure_mask_token(tokenizer)


def ensure_mask_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Adds a padding and a mask token to `tokenizer`, in place, where it has none, and returns it.

    A padding token that is also the end-of-text token is replaced, because the end of a text is generated and padding not.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, mask_token_id: int | None = None) -> None:
    """Checks that every id of a tokenizer is one of a model, and that their masks are the same.

    A model may have more symbols than its tokenizer: published checkpoints round `vocab_size` up.

    Args:
        vocab_size: that of the model.
        mask_token_id: that of the model; `None` for a model without a mask.

    Raises:
        ValueError: the tokenizer has more tokens than the model has symbols, or another mask token.
    """
    cure = "use the tokenizer saved with the model, or build the model from this tokenizer"
    if len(tokenizer) > vocab_size:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens, but the model has vocab_size={vocab_size}; {cure}")
    if mask_token_id is not None and tokenizer.mask_token_id != mask_token_id:
        raise ValueError(
            f"tokenizer has mask_token_id={tokenizer.mask_token_id}, but the model has mask_token_id={mask_token_id}; "
            f"{cure} (ensure_mask_token adds a mask token)"
        )


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that stands for what the vocabulary does not have; `None` if every text has tokens of its own.

    Tokenizers of bytes may name one that has another use, such as the end of a text, and never give it for characters.
    """
    found, others = tokenizer.unk_token_id, (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if found in others else found  # pyright: ignore[reportReturnType]


def check_known(tokenizer: PreTrainedTokenizerBase, text: str, ids: Iterable[int], name: str) -> None:
    """Checks that no token of a text stands for characters that the vocabulary does not have.

    Args:
        ids: the tokens of `text`.
        name: what the message calls the text.

    Raises:
        ValueError: one does; the message names up to ten such characters.
    """
    unknown = unknown_token(tokenizer)
    if unknown is None or unknown not in ids:
        return
    alone: Any = tokenizer(list(dict.fromkeys(text)), add_special_tokens=False, verbose=False)["input_ids"]
    found = [letter for letter, own in zip(dict.fromkeys(text), alone, strict=True) if unknown in own]
    which = ": " + ", ".join(map(repr, found[:10])) if found else ""
    raise ValueError(f"{name} holds characters that are not in the tokenizer's vocabulary{which}")


def with_special_tokens(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    """Adds `[PAD]`, `[EOS]` and `[MASK]` after the other tokens and wraps the result for transformers."""
    tokenizer.add_special_tokens([PAD, EOS, MASK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )


def _train_sentencepiece(
    texts: Iterable[str], vocab_size: int, model_type: str
) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece  # is loaded by who trains one

    lines = (
        line[start : start + LINE]
        for text in strings(texts)
        for line in text.splitlines()
        for start in range(0, len(line), LINE)
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            unk_piece=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"vocab_size={vocab_size + len((PAD, EOS, MASK))} does not fit these texts; sentencepiece, asked for "
            f"{vocab_size} pieces besides [PAD], [EOS] and [MASK], reports: {error}"
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def strings(texts: Iterable[str]) -> Iterator[str]:
    """The texts, each checked to be a string.

    Raises:
        TypeError: `texts` is one string, or holds other things than strings.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string; pass an iterable of strings, e.g. [text]")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts holds a {type(text).__name__}; pass an iterable of strings")
        yield text
