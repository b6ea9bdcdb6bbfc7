"""From files to batches: loading of text, images, tables and proteins, tokenizers, packing, encodings, collators."""

from typing import TYPE_CHECKING

from gm_discrete.data.chat import ChatReport, prompt_ids, tokenize_chat
from gm_discrete.data.collator import TokenCollator
from gm_discrete.data.conversations import load_chat
from gm_discrete.data.encoding import decode_rows, encode_rows, encoded_dataset, fit_codecs, natural_values
from gm_discrete.data.field_collator import SequenceCollator, TableCollator, decode_sequences
from gm_discrete.data.frame_collator import FrameCollator
from gm_discrete.data.image_collator import ImageCollator, to_uint8
from gm_discrete.data.images import load_images
from gm_discrete.data.packing import pack, truncate
from gm_discrete.data.pdb_files import write_pdb
from gm_discrete.data.protein_geometry import atoms_of, dihedrals, frames_of
from gm_discrete.data.proteins import AMINO_ACIDS, Chain, chain_example, read_chains
from gm_discrete.data.report import describe_columns
from gm_discrete.data.table_path import table_path
from gm_discrete.data.tables import load_table
from gm_discrete.data.text import load_text
from gm_discrete.data.tokenizers import (
    byte_level_bpe,
    character_tokenizer,
    check_tokenizer,
    ensure_mask_token,
    load_tokenizer,
    sentencepiece_tokenizer,
    smiles_tokenizer,
)
from gm_discrete.renamed import missing_name

__all__ = [
    "AMINO_ACIDS",
    "Chain",
    "ChatReport",
    "FrameCollator",
    "ImageCollator",
    "SequenceCollator",
    "TableCollator",
    "TokenCollator",
    "atoms_of",
    "byte_level_bpe",
    "chain_example",
    "character_tokenizer",
    "check_tokenizer",
    "decode_rows",
    "decode_sequences",
    "describe_columns",
    "dihedrals",
    "encode_rows",
    "encoded_dataset",
    "ensure_mask_token",
    "fit_codecs",
    "frames_of",
    "load_chat",
    "load_images",
    "load_table",
    "load_text",
    "load_tokenizer",
    "natural_values",
    "pack",
    "prompt_ids",
    "read_chains",
    "sentencepiece_tokenizer",
    "smiles_tokenizer",
    "table_path",
    "to_uint8",
    "tokenize_chat",
    "truncate",
    "write_pdb",
]

_MOVED = {
    "cut",
    "departure",
    "download_emoji",
    "download_fashion_mnist",
    "download_flights",
    "download_gcide",
    "load_chorales",
    "piano_roll",
    "scaffold_tokens",
    "write_midi",
}

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> None:
        raise missing_name(__name__, name, dict.fromkeys(_MOVED, "recipes/datasets in the repository of the library"))
