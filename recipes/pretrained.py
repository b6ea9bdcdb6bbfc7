"""Shared by the recipes that start from a pretrained model: arguments, loading, adapters, and what is published."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase, TrainingArguments

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath
from gm_discrete.data import ensure_mask_token
from gm_discrete.models.from_backbone import config_of
from gm_discrete.paths import Path as ProbabilityPath
from gm_discrete.training import GMTrainer, add_lora, load_adapter, published
from gm_discrete.training.checkpointed import WEIGHTS

BASE, ADAPTER = "base", "adapter"
"""Folders in `output_dir`: the model below an adapter, if a recipe has made it; and an adapter that is merged."""
DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class BackboneArguments:
    """Arguments for a pretrained model and adapters on it."""

    backbone: str | None = field(
        default=None,
        metadata={
            "help": "folder or hub id of the model to start from: a language model of transformers, or a GMModel"
        },
    )
    shift: bool | None = field(
        default=None,
        metadata={"help": "read the prediction of a token at the one before it; default: for decoders of transformers"},
    )
    dtype: str = field(
        default="float32", metadata={"help": "of the backbone's weights: float32, bfloat16, float16, auto"}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "load the backbone in 4 bits (bitsandbytes, on a GPU, with lora_rank)"}
    )
    lora_rank: int = field(default=0, metadata={"help": "rank of LoRA adapters (PEFT); 0: train all weights"})
    lora_alpha: float | None = field(default=None, metadata={"help": "scale of the adapters; default: twice the rank"})
    lora_targets: list[str] | None = field(
        default=None,
        metadata={"help": "names of the layers with adapters; default: all linear ones of the transformer"},
    )
    merge: bool = field(default=False, metadata={"help": "publish the model with the adapter merged into its weights"})


Options = TypeVar("Options", bound=BackboneArguments)


def check_backbone(options: BackboneArguments, of_new: Mapping[str, object] | None = None) -> None:
    """
    Args:
        of_new: arguments that a pretrained model has no use for, with their defaults.

    Raises:
        ValueError: arguments for a pretrained model or an adapter do not fit each other or the machine.
    """
    for name, default in (of_new or {}).items():
        if options.backbone is not None and getattr(options, name) != default:
            raise ValueError(
                f"{name}={getattr(options, name)!r} has no effect with backbone={options.backbone!r}; leave it out"
            )
    if options.dtype not in DTYPES:
        raise ValueError(f"dtype={options.dtype!r} must be one of {', '.join(DTYPES)}")
    for name in ("lora_alpha", "lora_targets", "merge", "load_in_4bit"):
        if (value := getattr(options, name)) and not options.lora_rank:
            raise ValueError(f"{name}={value} needs an adapter; give lora_rank, such as --lora_rank 16")
    for name in ("shift", "lora_rank"):
        if options.backbone is None and (value := getattr(options, name)) not in (None, 0):
            raise ValueError(f"{name}={value} needs a pretrained model; give --backbone")
    if options.lora_rank and importlib.util.find_spec("peft") is None:
        raise ValueError(f"lora_rank={options.lora_rank} needs PEFT, which is not installed: pip install peft")
    if options.load_in_4bit and not torch.cuda.is_available():
        raise ValueError("load_in_4bit=True needs a GPU, and there is none; leave it out")
    if options.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_in_4bit=True needs bitsandbytes, which is not installed: pip install bitsandbytes")


def backbone_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained model. That of a language model of transformers gets a mask; a `GMModel` has its own.

    Raises:
        ValueError: there is no such model, or it has no tokenizer.
    """
    is_own = is_gm_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"backbone={name!r} has no tokenizer that can be loaded ({error}); save one in its folder: "
            "tokenizer.save_pretrained(folder)"
        ) from error
    return tokenizer if is_own else ensure_mask_token(tokenizer)


def is_gm_model(name: str) -> bool:
    """Whether a pretrained model is a `GMModel`, not a language model of transformers."""
    return backbone_config(name).model_type == GMConfig.model_type


def backbone_config(name: str) -> Any:
    """The config of a pretrained model.

    Raises:
        ValueError: there is none.
    """
    try:
        return config_of(name)
    except OSError as error:
        raise ValueError(str(error)) from error


def load_backbone(
    options: BackboneArguments,
    tokenizer: PreTrainedTokenizerBase,
    path: ProbabilityPath | str,
    length: int,
    model_options: dict[str, Any],
) -> GMModel:
    """The pretrained model as a `GMModel`.

    Args:
        path: the probability path; of a `GMModel` it must be of the same kind.
        length: tokens of a sequence, for a language model of transformers.
        model_options: further arguments of `GMConfig`, likewise.

    Raises:
        ValueError: there is no such model, or it has another path, shift or options.
    """
    name, loading = str(options.backbone), {"dtype": options.dtype}
    if options.load_in_4bit:
        quantized: Any = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        loading |= {"quantization_config": quantized}
    if not is_gm_model(name):
        config = {"max_position_embeddings": length, "mask_token_id": tokenizer.mask_token_id, **model_options}
        return GMModel.from_backbone(name, path, options.shift, tokenizer, **loading, **config)
    if model_options:
        raise ValueError(f"model_options={model_options}, and backbone={name!r} is a GMModel already; leave them out")
    model = GMModel.from_pretrained(name, **loading)
    kind = {"masked": MaskedPath, "uniform": UniformPath}.get(path) if isinstance(path, str) else type(path)
    if type(model.path) is not kind:
        raise ValueError(
            f"path={path!r}, and backbone={name!r} was trained with {model.path!r}; give that kind of path"
        )
    if options.shift is not None and options.shift != bool(model.config.shift):
        raise ValueError(f"shift={options.shift}, and backbone={name!r} has shift={model.config.shift}; leave it out")
    return model


def with_adapter(
    options: Options,
    training: TrainingArguments,
    model: GMModel,
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[Options], GMModel],
) -> Any:
    """The model with the adapter that the options ask for, or as it is.

    An adapter names the model that it belongs to. One made from a language model of transformers is written to
    `output_dir` for it, with the tokenizer, which pipelines load from there.

    Args:
        load: loads the model by options; called for one that is in 4 bits, which is written in full precision.
    """
    if not options.lora_rank:
        return model
    folder = Path(str(training.output_dir)) / BASE
    if not is_gm_model(str(options.backbone)):
        if training.should_save:
            with published(folder) as draft:
                full = load(replace(options, load_in_4bit=False)) if options.load_in_4bit else model
                full.save_pretrained(draft)
                tokenizer.save_pretrained(draft)
    else:
        folder = Path(str(options.backbone))
    model.name_or_path = str(folder.resolve()) if folder.is_dir() else str(options.backbone)
    if options.load_in_4bit:
        from peft import prepare_model_for_kbit_training

        prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(training.gradient_checkpointing))
    return add_lora(model, options.lora_rank, alpha=options.lora_alpha, targets=options.lora_targets)


def publish(options: BackboneArguments, trainer: GMTrainer) -> None:
    """Saves the trained model to `output_dir`, or the adapter alone, or the model with the adapter merged into it."""
    output = Path(str(trainer.args.output_dir))
    if not (options.lora_rank and options.merge):
        trainer.save_model(str(output))
        return
    trainer.save_model(str(output / ADAPTER))
    if trainer.args.should_save:
        own = output / BASE
        base = GMModel.from_pretrained(own if own.is_dir() else str(options.backbone), dtype=options.dtype)
        merged: Any = load_adapter(base, output / ADAPTER).merge_and_unload()
        with published(output, replaces=WEIGHTS) as draft:
            merged.save_pretrained(draft)
            tokenizer: Any = trainer.processing_class
            tokenizer.save_pretrained(draft)
        if own.is_dir():
            rmtree(own)
