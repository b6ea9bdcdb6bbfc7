"""The README.md of a saved model: what it is, code that loads and samples it, what was measured, and its limits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.nn.config import GMConfig

MARK = "<!-- Written by gm_discrete. A README.md without this line is not overwritten. -->"
PAPER = "2410.20587"
KINDS = {
    "masked": ("masked diffusion", "Every token starts as a mask, and is revealed at a random time"),
    "uniform": ("uniform diffusion", "Every token starts as a random one, and may change until the end"),
    "mixture": (
        "discrete diffusion",
        "Every token starts as a draw from a fixed distribution, and may change until the end",
    ),
    "metric": (
        "discrete flow matching",
        "Tokens move through tokens that are close to them, by a distance between tokens",
    ),
    "edits": ("edit process", "A string grows and changes by insertions, deletions and substitutions"),
    "gaussian": ("Gaussian path", "Numbers start as Gaussian noise"),
    "euclidean_mixture": ("mixture path of numbers", "Numbers start as Gaussian noise, and jump to the data"),
    "so3": ("process of rotations", "Rotations start as random ones"),
    "geodesic_so3": ("flow of rotations", "Rotations start as random ones, and follow geodesics"),
}
"""Type of a path → its name, and what it does."""
CITATION = """```bibtex
@inproceedings{holderrieth2025generator,
  title     = {Generator Matching: Generative modeling with arbitrary Markov processes},
  author    = {Holderrieth, Peter and Havasi, Marton and Yim, Jason and Shaul, Neta and Gat, Itai and Jaakkola, Tommi and
               Karrer, Brian and Chen, Ricky T. Q. and Lipman, Yaron},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}
```"""
NETWORKS = {"gm": "transformer", "dit": "DiT"}
"""Names of the library's own networks."""
LONGEST = 16
"""Numbers of a list in the path that are shown; a distribution over tokens would fill the page."""


@dataclass(frozen=True)
class Card:
    """What a model card says beside the config of the model; `save_pretrained` and `push_to_hub` take it as `model_card`.

    Attributes:
        name: of the model, or of its repository.
        license: as in the metadata of the hub, such as "apache-2.0".
        language, tags: of the metadata.
        data: names of the data sets that it was trained on.
        base: the pretrained model that it started from.
        step: optimizer steps of the training.
        metrics: of held-out data, as `GMTrainer.evaluate` returns them, without prefix: "bits_per_token" with its
            "bits_per_token_stderr" and the number of "sequences", or others.
        has_tokenizer: whether the tokenizer is saved beside the model.
        is_adapter: whether the folder holds an adapter of PEFT alone.
    """

    name: str | None = None
    license: str | None = None
    language: str | None = None
    tags: Sequence[str] = ()
    data: Sequence[str] = ()
    base: str | None = None
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_tokenizer: bool = False
    is_adapter: bool = False

    def text(
        self, config: GMConfig, generation: GMGenerationConfig | None = None, parameters: int | None = None
    ) -> str:
        """The card of a model with this config, generation config and number of parameters, in Markdown."""
        kind = f"{'adapter of a ' if self.is_adapter else ''}{_kind(config)} model"
        title = self.name or f"{kind[0].upper()}{kind[1:]}"
        parts = [f"---\n{yaml.safe_dump(self._metadata(config), sort_keys=False, allow_unicode=True)}---", MARK]
        parts += [f"# {title}", _described(config), self._origin(), "## Use"]
        parts += [f"```shell\npip install {'gm_discrete[peft]' if self.is_adapter else 'gm_discrete'}\n```"]
        parts += [f"```python\n{self._code(config)}\n```", "## Model", _table(config, generation, parameters)]
        parts += ["The path as JSON, as in `config.json`:", f"```json\n{_short_json(config.path)}\n```"]
        parts += self._evaluation()
        parts += ["## Limits", "\n".join(f"- {limit}" for limit in _limits(config))]
        parts += ["## Citation", CITATION]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self, config: GMConfig) -> dict[str, Any]:
        """The metadata of the hub. Names that are not of the form owner/name are no data sets or models of the hub."""
        kind = _kind(config).replace(" ", "-").lower()
        found: dict[str, Any] = {"library_name": "peft" if self.is_adapter else "gm_discrete"}
        found["pipeline_tag"] = _pipeline(config, self.has_tokenizer)
        found["license"], found["language"] = self.license, self.language
        found["base_model"] = self.base if self.base is not None and _is_hub_name(self.base) else None
        found["datasets"] = [name for name in self.data if _is_hub_name(name)]
        found["tags"] = list(dict.fromkeys(["gm_discrete", "generator-matching", kind, f"arxiv:{PAPER}", *self.tags]))
        return {name: value for name, value in found.items() if value}

    def _origin(self) -> str:
        steps = f" in {self.step:,} optimizer steps" if self.step else ""
        data = f" on {', '.join(self.data)}" if self.data else ""
        base = f" It started from `{self.base}`." if self.base and not self.is_adapter else ""
        trained = f"It was trained{data}{steps}." if data or steps else ""
        return f"{trained}{base}".strip()

    def _code(self, config: GMConfig) -> str:
        """Code that loads and samples the model in its folder."""
        imports, lines = _sampling(config, self.has_tokenizer)
        load = ['model = GMModel.from_pretrained(".")  # this folder, or the name of this repository on the hub']
        if self.is_adapter:
            imports = [*imports, "from gm_discrete.training import load_adapter"]
            base = self.base or "the folder of the model that the adapter was trained on, or its name on the hub"
            load = [f"base = GMModel.from_pretrained({json.dumps(base)})"]
            load += ['model = load_adapter(base, ".").merge_and_unload()  # this folder']
        return "\n".join(["from gm_discrete import GMModel", *imports, "", *load, *lines])

    def _evaluation(self) -> list[str]:
        """What was measured; nothing if nothing was."""
        found = dict(self.metrics)
        if not found:
            return []
        after = f" after {self.step:,} steps" if self.step else ""
        if "bits_per_token" in found:
            error = found.get("bits_per_token_stderr")
            bound = f"{found['bits_per_token']:.4f}" + (f" ± {error:.4f}" if error is not None else "")
            size = f", {int(found['sequences'])} sequences" if "sequences" in found else ""
            text = f"Held-out data{after}: at most {bound} bits per token (an upper bound on −log₂ p{size})."
        else:
            values = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            text = f"Held-out data{after}, matching loss, which compares runs on the same path and data only: {values}."
        return ["## Evaluation", text]


def write_card(folder: str | os.PathLike[str], text: str) -> None:
    """Writes README.md, unless the folder has one of another origin."""
    file = Path(folder) / "README.md"
    if is_ours(file):
        file.write_text(text, encoding="utf-8")


def is_ours(file: Path) -> bool:
    """Whether a README.md may be overwritten: there is none, or it was written here."""
    return not file.exists() or MARK in file.read_text(encoding="utf-8", errors="replace")


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _kind(config: GMConfig) -> str:
    """What kind of model it is, in two or three words."""
    path: Any = config.build_path()
    if len(path.fields) > 1:
        return "product of paths"
    if path.type_name == "gaussian":
        alone = {"flow": "flow matching", "jump": "jump process", "diffusion": "diffusion"}
        return " and ".join(path.generators) if len(path.generators) > 1 else alone[next(iter(path.generators))]
    return KINDS.get(path.type_name, (type(path).__name__,))[0]


def _described(config: GMConfig) -> str:
    """A sentence or a list: what each field does."""
    path, lines = config.build_path(), []
    for name, one in path.fields.items():
        kind: Any = one
        words = KINDS.get(kind.type_name, ("", f"A {type(kind).__name__}"))[1]
        moves = f", and move by {' and '.join(kind.generators)}" if kind.type_name in ("gaussian", "so3") else ""
        schedule = getattr(kind, "schedule", None)
        by = f" ({schedule.type_name} schedule)" if schedule is not None and hasattr(schedule, "type_name") else ""
        lines.append(f"{words}{moves}{by}.")
        if name:
            lines[-1] = f"- `{name}`: {lines[-1][0].lower()}{lines[-1][1:]}"
    what = "A generator matching model of the library gm_discrete"
    return f"{what}. {lines[0]}" if len(lines) == 1 else "\n".join([f"{what}, of several fields:\n", *lines])


def _pipeline(config: GMConfig, has_tokenizer: bool) -> str | None:
    if config.image_shape is not None:
        return "unconditional-image-generation"
    return "text-generation" if has_tokenizer else None


def _sampling(config: GMConfig, has_tokenizer: bool) -> tuple[list[str], list[str]]:
    """Imports, and lines of code that sample the model."""
    path: Any = config.build_path()
    call = f"model.generate({'class_labels=[0, 1]' if config.num_classes > 1 else 'batch_size=2'})"
    if config.image_shape is not None:
        levels = f", levels={path.vocab_size - len(path.excluded)}" if path.is_discrete else ""
        return ["from gm_discrete.data import to_uint8"], [
            f"images = to_uint8({call}.cpu(){levels})  # bytes [B, C, H, W]"
        ]
    if "" in path.fields and not path.is_discrete:
        return [], [f"samples = {call}  # numbers [B, L, C]"]
    if "" in path.fields and not has_tokenizer:
        return [], [f"samples = {call}  # token ids [B, L]"]
    if "" in path.fields:
        skip = ", skip_special_tokens=True" if path.strings is not None else ""
        lines = ['tokenizer = load_tokenizer(".")', f"print(tokenizer.batch_decode({call}{skip}))"]
        return ["from gm_discrete.data import load_tokenizer"], lines
    rows = all(part.length == 1 for part in config.state_fields.values())
    if rows and config.codecs.keys() >= path.fields.keys():
        return ["from gm_discrete.data import decode_rows"], [f"print(decode_rows({call}, model.config.codecs))"]
    return [], [f"samples = {call}  # by field: {', '.join(path.fields)}"]


def _table(config: GMConfig, generation: GMGenerationConfig | None, parameters: int | None) -> str:
    backbone = config.backbone
    kind = (
        backbone.get("model_type", "language model")
        if isinstance(backbone, dict)
        else NETWORKS.get(str(backbone), backbone)
    )
    network = (
        f"{kind}, {config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads"
    )
    classes = ", ".join(dict.fromkeys(f"`{type(part.path).__name__}`" for part in config.state_fields.values()))
    rows = {"path": classes, "network": network, "parameters": None if parameters is None else f"{parameters:,}"}
    for name, part in config.state_fields.items():
        path: Any = part.path
        shape = f"image {list(part.image_shape)}" if part.image_shape else f"{part.length} positions"
        symbols = f"{path.vocab_size} symbols" if path.is_discrete else "numbers"
        rows[f"field `{name}`" if name else "state"] = f"{shape}, {symbols}"
    if config.num_classes:
        rows["classes"] = str(config.num_classes)
    if generation is not None:
        rows["default sampler"] = f"`{generation.sampler!r}`, {generation.num_steps} steps"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def _limits(config: GMConfig) -> list[str]:
    path: Any = config.build_path()
    limits = ["transformers has no such architecture: import gm_discrete first, also for its Auto classes "
              "(`import gm_discrete.models`)."]  # fmt: skip
    if "" in path.fields and path.is_discrete and config.image_shape is None:
        most = "Strings have at most" if path.strings is not None else "It was made for sequences of up to"
        limits.append(f"{most} {config.max_position_embeddings} tokens.")
        limits.append("Bits per token are an upper bound, and comparable between models with the same tokenizer only.")
        if path.strings is None and getattr(path, "mask_token_id", None) is None:
            limits.append("Prompts are an approximation: they enter the network at the noise of the time.")
    if len(path.fields) > 1 and not config.independent_times:
        limits.append(
            "Observed fields of numbers are an approximation: they enter the network at the noise of the time."
        )
    return [*limits, "Samples repeat the errors and biases of the training data, and nothing in them has been checked."]


def _short_json(value: object) -> str:
    """JSON, with long lists replaced by their lengths."""
    return json.dumps(_shortened(value, lambda size: f"{size} numbers, in config.json"), indent=1, ensure_ascii=False)


def _shortened(value: object, label: Callable[[int], str]) -> object:
    if isinstance(value, Mapping):
        return {name: _shortened(part, label) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return label(len(value)) if len(value) > LONGEST else [_shortened(part, label) for part in value]
    return value
