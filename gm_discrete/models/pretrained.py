"""What transformers needs of a model beside its `forward`: settings, initialisation, embeddings, files of a folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import GENERATION_CONFIG_NAME

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.models.card import Card, is_ours, write_card
from gm_discrete.nn.backbone import Backbone, LocalConvolution
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.dit import DiT
from gm_discrete.nn.embeddings import FieldsEmbedding
from gm_discrete.nn.frames import FrameAttention
from gm_discrete.nn.tables import PathTables
from gm_discrete.nn.transformers_backbone import TransformersBackbone
from gm_discrete.paths import Path as ProbabilityPath

ADAPTED = ("lora_", "modules_to_save.")
"""Parts of the names of weights that PEFT adds."""
TEMPLATE = "This is the model card of a 🤗 transformers model"
"""In the README.md that transformers uploads where the repository has none."""
OTHER_ORIGIN = (
    "model_card is given, but {} was not written by gm_discrete and is not overwritten; delete it, or edit it"
)


class GMPreTrainedModel(PreTrainedModel):
    """Settings, initialisation, embeddings and generation config of a `GMModel`."""

    config_class = GMConfig
    generation_config_class = GMGenerationConfig
    base_model_prefix = "model"  # of no attribute: the whole model is its own base model
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"^path_tables\."]  # version 0.1 kept the tables in config.json
    if TYPE_CHECKING:  # transformers sets both, and takes an annotation of `config` for `config_class`
        config: GMConfig
        generation_config: GMGenerationConfig
    accepts_loss_kwargs = True  # the Trainer passes num_items_in_batch
    backbone: Backbone | DiT | TransformersBackbone
    heads: nn.ModuleDict
    path: ProbabilityPath
    path_tables: PathTables
    _readme: tuple[Card | None, str | None]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, LocalConvolution):  # near the identity
            init.normal_(module.weight, std=0.5)
            if not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[len(module.weight) // 2] += 1
        elif isinstance(module, FrameAttention):
            init.zeros_(module.log_weight)
        elif isinstance(module, PathTables):
            module.restore()
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model as every `PreTrainedModel`; its path gets the tables that are stored with the weights."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).path_tables.load_path()
        return loaded

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *,
        model_card: Card | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves a model as every `PreTrainedModel`, with a model card as README.md.

        Args:
            model_card: data, licence, likelihood and more for the card. It replaces a card that was written by this library;
                without it a README.md that is there is kept as it is.

        Raises:
            ValueError: `model_card` is given, and README.md is of another origin.
        """
        file = Path(save_directory, "README.md")
        if model_card is not None and not is_ours(file):
            raise ValueError(OTHER_ORIGIN.format(file))
        kept = file.read_text(encoding="utf-8") if model_card is None and file.is_file() else None
        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict, "push_to_hub": push_to_hub}
        with self._with_readme(model_card, kept) if push_to_hub else nullcontext():
            super().save_pretrained(save_directory, **kwargs)
        if kept is None and is_main_process and not push_to_hub:
            write_card(save_directory, self.card_text(model_card))

    def push_to_hub(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, repo_id: str, *, model_card: Card | None = None, **kwargs: Any
    ) -> str:
        """Uploads a model as every `PreTrainedModel`, with a model card as README.md.

        Args:
            model_card: data, licence, likelihood and more for the card. It replaces the card of a repository that was
                written by this library; without it the card of a repository is kept.

        Raises:
            ValueError: `model_card` is given, and the card of the repository is of another origin.
        """
        with self._with_readme(model_card, None):
            return super().push_to_hub(repo_id, **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    @contextmanager
    def _with_readme(self, card: Card | None, text: str | None) -> Iterator[None]:
        """An upload within has this card, or this text, as README.md."""
        self._readme = card, text
        try:
            yield
        finally:
            del self._readme

    def card_text(self, card: Card | None = None) -> str:
        """The model card, in Markdown; adapters do not count as parameters."""
        names = dict(self.named_parameters(remove_duplicate=True))  # tied weights once
        count = sum(weight.numel() for name, weight in names.items() if not any(part in name for part in ADAPTED))
        return (card or Card()).text(self.config, self.generation_config, count)

    def _upload_modified_files(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, working_dir: str | os.PathLike[str], repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        """Called before an upload, with the README.md of the repository, or a template of transformers where it has none.

        Our card takes the place of the template, and keeps its tags.
        """
        file = Path(working_dir) / "README.md"
        card, kept = self.__dict__.get("_readme", (None, None))
        there = file.read_text(encoding="utf-8") if file.exists() else TEMPLATE
        if kept is not None:
            file.write_text(kept, encoding="utf-8")
        elif TEMPLATE in there or card is not None:
            if TEMPLATE not in there and not is_ours(file):
                raise ValueError(OTHER_ORIGIN.format(f"README.md of {repo_id}"))
            card, tags = card or Card(), ModelCard(there).data.to_dict().get("tags") or ()
            card = replace(card, name=card.name or repo_id.rpartition("/")[2], tags=[*card.tags, *tags])
            file.write_text(self.card_text(card), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)

    @property
    def device(self) -> torch.device:
        """The device of the states: that of the weights, or the one on which offloaded weights are used."""
        own = next(self.parameters()).device
        if own.type != "meta" and self.__dict__.keys().isdisjoint(("hf_device_map", "_hf_hook")):
            return own  # without a walk through all modules, which takes longer than a small network
        for module in self.modules():
            if isinstance(device := getattr(getattr(module, "_hf_hook", None), "execution_device", None), int | str):
                return torch.device(device)
            if isinstance(device, torch.device):
                return device
        return own

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of a single field; of several that of their kinds, which is added at every position."""
        found = self.backbone.embed_tokens
        return found.kinds if isinstance(found, FieldsEmbedding) else found

    def set_input_embeddings(self, value: nn.Module) -> None:
        holder = self.backbone.embed_tokens
        if isinstance(holder, FieldsEmbedding):
            holder.kinds = value  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.backbone.embed_tokens = value  # pyright: ignore[reportAttributeAccessIssue]

    def get_output_embeddings(self) -> nn.Module | None:
        return dict(self.heads.items()).get("tokens")

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.heads["tokens"] = new_embeddings

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> nn.Embedding:
        raise ValueError("the vocabulary is part of the path: make a new GMConfig with a path of the new vocab_size")

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The arguments as they are; PEFT needs the method."""
        return {"input_ids": input_ids, **kwargs}

    @classmethod
    def can_generate(cls) -> bool:
        """True: transformers creates, loads and saves a generation config."""
        return True

    def adjust_generation_fn(
        self,
        generation_config: GMGenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: object,
        path: str | None,
        **kwargs: Any,
    ) -> None:
        """Called by `from_pretrained`: loads `generation_config.json`, if there is one.

        Raises:
            ValueError: the file is damaged.
        """
        if generation_config is not None or path is None:
            self.generation_config = generation_config or GMGenerationConfig()
            return
        known = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        place = {key: value for key, value in kwargs.items() if key in known}
        file = Path(path, kwargs.get("subfolder") or "", GENERATION_CONFIG_NAME)
        if file.exists() and not _holds_a_dict(file):
            raise ValueError(f"{file} is damaged; restore the file, or delete it to generate with the defaults")
        try:
            found = GMGenerationConfig.from_pretrained(path, **place)
        except OSError:
            found = GMGenerationConfig()
        self.generation_config = found  # pyright: ignore[reportAttributeAccessIssue]


def _holds_a_dict(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False
