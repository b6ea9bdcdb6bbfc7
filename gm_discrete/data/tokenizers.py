"""Tokenizers for models of K = `len(tokenizer)` symbols, the mask among them.

The ones trained here number the symbols of the text first and the special tokens after them, `[MASK]` last, where
`MaskedPath` looks for it. All are fast tokenizers: `save_pretrained` writes a `tokenizer.json` that
`AutoTokenizer.from_pretrained` reads without this library.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, UNKNOWN, EOS, MASK = "[PAD]", "[UNK]", "[EOS]", "[MASK]"
METASPACE = "\u2581"
"""What sentencepiece writes for a space."""
SMILES_SYMBOL = r"\[[^\[\]]*\]|Br|Cl|%\d\d|%\(\d+\)|[\s\S]"
"""One symbol of SMILES (OpenSMILES 1.0, section 3): an atom in brackets, Br, Cl, a ring closure of two or more digits, or
any single character: every other atom, bond, branch, dot or ring closure."""
LINE = 1024
"""Characters of a training line: sentencepiece skips lines of more than 4192 bytes, and a character has at most 4."""


def character_tokenizer(texts: Iterable[str] = (), *, alphabet: str | None = None) -> PreTrainedTokenizerFast:
    """One id per character: those of `texts` in the order of their code points, or those of `alphabet` as they stand.

    Then come `[UNK]`, for every other character, `[PAD]`, `[EOS]` and `[MASK]`.

    Raises:
        ValueError: there is no character, or a character stands twice in `alphabet`.
    """
    symbols = list(alphabet) if alphabet is not None else sorted(set().union(*strings(texts)))
    if not symbols:
        raise ValueError("texts and alphabet hold no character; pass the texts to be tokenised, or alphabet='abc…'")
    if len(set(symbols)) < len(symbols):
        raise ValueError(f"alphabet={alphabet!r} holds a character twice; give each one once")
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, UNKNOWN])}
    # A BPE without merges leaves text in characters, 4 times as fast as a WordLevel model behind a splitting regex.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return with_special_tokens(tokenizer, unk_token=UNKNOWN)


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of UTF-8 bytes, as in GPT-2: every text comes back exactly.

    `vocab_size` counts the 256 bytes, the merges, `[PAD]`, `[EOS]` and `[MASK]`; a text too short for so many merges
    gives a smaller vocabulary.

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
    """A sentencepiece model, trained on the lines of `texts` and turned into a fast tokenizer with the same ids.

    Text is not normalised and characters that have no piece become bytes, so that decoding gives it back exactly, but
    for a U+2581 (it becomes a space) and, with "unigram", for the spelling `<0x41>` of a byte (it becomes that byte).
    `vocab_size` counts the pieces, the 256 bytes, `[UNK]`, `[PAD]`, `[EOS]` and `[MASK]`.

    Raises:
        ValueError: `model_type` is unknown, or these texts do not give exactly `vocab_size` pieces.
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


def load_tokenizer(name_or_path: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained(name_or_path, **kwargs)`, made fit for masking by `ensure_mask_token`."""
    return ensure_mask_token(AutoTokenizer.from_pretrained(name_or_path, **kwargs))


def ensure_mask_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Gives `tokenizer` a padding and a mask token where it has none; changes it in place and returns it.

    A padding token that is also the end of a text is replaced: padding is not generated, ends are.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, mask_token_id: int | None = None) -> None:
    """Refuses a tokenizer whose ids are not those of a model with `vocab_size` symbols.

    Args:
        mask_token_id: the model's own, `None` for a model that does not mask.

    Raises:
        ValueError: the number of tokens or the mask token differs.
    """
    cure = "use the tokenizer saved with the model, or build the model from this tokenizer"
    if len(tokenizer) != vocab_size:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens, but the model has vocab_size={vocab_size}; {cure}")
    if mask_token_id is not None and tokenizer.mask_token_id != mask_token_id:
        raise ValueError(
            f"tokenizer has mask_token_id={tokenizer.mask_token_id}, but the model has mask_token_id={mask_token_id}; "
            f"{cure} (ensure_mask_token adds a mask token)"
        )


def with_special_tokens(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    """With `[PAD]`, `[EOS]` and `[MASK]` behind its symbols, as transformers has tokenizers."""
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
            f"vocab_size={vocab_size + len((PAD, EOS, MASK))} does not suit these texts, "
            f"says sentencepiece of the {vocab_size} pieces without [PAD], [EOS] and [MASK]: {error}"
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def strings(texts: Iterable[str]) -> Iterator[str]:
    """The texts, checked on the way.

    Raises:
        TypeError: `texts` is one string, or holds something else.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string; pass an iterable of strings, e.g. [text]")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts holds a {type(text).__name__}; pass an iterable of strings")
        yield text
