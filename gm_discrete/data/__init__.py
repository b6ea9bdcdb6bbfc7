"""Text, images, tables, notes and molecules for training: data sets, tokenizers, packing and batches."""

from gm_discrete.data.collator import TokenCollator
from gm_discrete.data.encoding import decode_rows, encode_rows, encoded_dataset, fit_codecs, natural_values
from gm_discrete.data.field_collator import SequenceCollator, TableCollator, decode_sequences
from gm_discrete.data.image_collator import ImageCollator, to_uint8
from gm_discrete.data.images import download_emoji, download_fashion_mnist, load_images
from gm_discrete.data.molecules import scaffold_tokens, smiles_tokenizer
from gm_discrete.data.music import cut, load_chorales, piano_roll, write_midi
from gm_discrete.data.packaged import download_gcide
from gm_discrete.data.packing import pack, truncate
from gm_discrete.data.table_path import table_path
from gm_discrete.data.tables import departure, download_flights, load_table
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
    "SequenceCollator",
    "TableCollator",
    "TokenCollator",
    "byte_level_bpe",
    "character_tokenizer",
    "check_tokenizer",
    "cut",
    "decode_rows",
    "decode_sequences",
    "departure",
    "download_emoji",
    "download_fashion_mnist",
    "download_flights",
    "download_gcide",
    "encode_rows",
    "encoded_dataset",
    "ensure_mask_token",
    "fit_codecs",
    "load_chorales",
    "load_images",
    "load_table",
    "load_text",
    "load_tokenizer",
    "natural_values",
    "pack",
    "piano_roll",
    "scaffold_tokens",
    "sentencepiece_tokenizer",
    "smiles_tokenizer",
    "table_path",
    "to_uint8",
    "truncate",
    "write_midi",
]
