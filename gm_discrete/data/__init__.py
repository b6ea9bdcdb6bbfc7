"""Text and images for training: data sets, tokenizers, packing and batches."""

from gm_discrete.data.collator import TokenCollator
from gm_discrete.data.image_collator import ImageCollator, to_uint8
from gm_discrete.data.images import download_emoji, download_fashion_mnist, load_images
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
    "ImageCollator",
    "TokenCollator",
    "byte_level_bpe",
    "character_tokenizer",
    "check_tokenizer",
    "download_emoji",
    "download_fashion_mnist",
    "download_gcide",
    "ensure_mask_token",
    "load_images",
    "load_text",
    "load_tokenizer",
    "pack",
    "sentencepiece_tokenizer",
    "to_uint8",
    "truncate",
]
