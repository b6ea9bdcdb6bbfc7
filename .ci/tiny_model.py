"""Writes a folder with an untrained model of a few characters, and its tokenizer."""

import sys

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import character_tokenizer

tokenizer = character_tokenizer(["to be or not to be"])
path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
GMModel(GMConfig(path=path, **sizes)).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
