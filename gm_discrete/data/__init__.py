"""Text for training: data sets, tokenizers, packing and batches."""

from gm_discrete.data.collator import TokenCollator
from gm_discrete.data.packaged import download_gcide
from gm_discrete.data.packing import pack, truncate
from gm_discrete.data.text import load_text
from gm_discrete.data.tokenizers import (
    byte_level_bpe,
    character_tokenizer,
    check_tokenizer,
    ensure_mask_token,
    load_tokenizer,
    sentencepiece_tokenizer,
)

__all__ = [
    "TokenCollator",
    "byte_level_bpe",
    "character_tokenizer",
    "check_tokenizer",
    "download_gcide",
    "ensure_mask_token",
    "load_text",
    "load_tokenizer",
    "pack",
    "sentencepiece_tokenizer",
    "truncate",
]
