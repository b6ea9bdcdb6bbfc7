from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from gm_discrete import GaussianPath, GMConfig, GMModel, MaskedPath
from gm_discrete.data import fit_codecs, table_path
from tests.helpers import small_run

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of a, b, c and d, eight characters long, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "text"
    small_run.small_model().save_pretrained(folder)
    small_run.TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def table_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an untrained model of a table of a word and a number."""
    folder = tmp_path_factory.mktemp("models") / "table"
    codecs = fit_codecs(Dataset.from_dict({"animal": ["cat", "dog"] * 20, "weight": [4.0 + i / 10 for i in range(40)]}))
    torch.manual_seed(0)
    fields = {name: {"codec": codec} for name, codec in codecs.items()}
    GMModel(GMConfig(path=table_path(codecs), fields=fields, **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def own_table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an untrained model of a table with missing cells, with a time for each field."""
    folder = tmp_path_factory.mktemp("models") / "own_table"
    rows = {
        "age": [20 + i for i in range(20)] * 2,
        "height": [None if i % 2 else 1.5 + i / 100 for i in range(40)],
        "town": ["Ur", "Tyre"] * 20,
    }
    codecs = fit_codecs(Dataset.from_dict(rows))
    torch.manual_seed(0)
    fields = {name: {"codec": codec} for name, codec in codecs.items()}
    path = table_path(codecs, independent_times=True)
    GMModel(GMConfig(path=path, fields=fields, aligned=[list(codecs)], **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def image_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with untrained models of images of 4 × 4 pixels: colours as numbers by class, and grey levels."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    models = {
        "numbers": GMConfig(
            path=GaussianPath({"flow": 1.0}, num_channels=3),
            image_shape=[3, 4, 4],
            patch_size=2,
            num_classes=2,
            **SIZES,
        ),
        "levels": GMConfig(path=MaskedPath(17), image_shape=[1, 4, 4], patch_size=2, **SIZES),
    }
    for name, config in models.items():
        GMModel(config).save_pretrained(root / name)
    return {name: str(root / name) for name in models}
