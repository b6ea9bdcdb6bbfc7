"""The model card: metadata that the hub reads, code that runs, and what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from gm_discrete import (
    EditPath,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    MixturePath,
    SO3Path,
    UniformPath,
)
from gm_discrete.data import fit_codecs, table_path
from gm_discrete.models.card import MARK, Card
from gm_discrete.training import add_lora
from recipes import images, mixed, proteins, sft
from recipes import text as text_recipe
from recipes.common import model_card, weight_settings
from tests.helpers import small_run

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CODECS = fit_codecs(Dataset.from_dict({"animal": ["cat", "dog"] * 20, "weight": [4.0 + i / 10 for i in range(40)]}))
CONFIGS = {
    "masked": {"path": MaskedPath(8), "max_position_embeddings": 8},
    "uniform": {"path": UniformPath(8), "max_position_embeddings": 8, "num_classes": 3},
    "prior": {"path": MixturePath(40, [1 / 40] * 40), "max_position_embeddings": 8},
    "edits": {"path": EditPath(8), "max_position_embeddings": 8},
    "flow and jump": {"path": GaussianPath({"flow": 0.5, "jump": 0.5}, num_channels=3), "max_position_embeddings": 4},
    "images": {"path": GaussianPath({"flow": 1.0}, num_channels=3), "image_shape": [3, 4, 4], "patch_size": 2,
               "num_classes": 2},
    "levels": {"path": MaskedPath(17), "image_shape": [1, 4, 4], "patch_size": 2},
    "rotations": {"path": SO3Path(), "max_position_embeddings": 4},
    "table": {"path": table_path(CODECS), "fields": {name: {"codec": codec} for name, codec in CODECS.items()}},
}  # fmt: skip


ARGUMENTS = {"ImageArguments", "MixedArguments", "ProteinArguments", "SFTArguments", "TextArguments"}


def code(text: str) -> str:
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return found


def metadata(text: str) -> dict[str, Any]:
    card = ModelCard(text)
    return card.data.to_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_card__its_code_runs_in_the_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GMModel(GMConfig(**CONFIGS[name], **SIZES))
    model.generation_config.num_steps = 4
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    found = metadata(text)
    assert found["library_name"] == "gm_discrete"
    assert "generator-matching" in found["tags"]
    assert found.get("pipeline_tag") == ("unconditional-image-generation" if "image_shape" in CONFIGS[name] else None)
    assert "numbers, in config.json" not in text or name == "prior"
    assert len(text) < 6000
    monkeypatch.chdir(tmp_path)
    exec(code(text), {})


def test_card__describes_the_model() -> None:
    model = small_run.small_model()
    text = model.card_text()
    assert text.startswith("---\nlibrary_name: gm_discrete\n")
    assert "\n# Masked diffusion model\n" in text
    assert '"type": "masked"' in text
    assert f"| parameters | {sum(weight.numel() for weight in model.parameters()):,} |" in text
    assert "linear schedule" in text
    assert "TauLeaping" in text
    assert "Evaluation" not in text  # nothing was measured
    assert "license" not in metadata(text)
    full = Card("My model", "mit", "en", ["plays"], ["me/plays", "book.txt"], base="me/base", has_tokenizer=True)
    found = metadata(model.card_text(full))
    assert (found["license"], found["language"], found["base_model"]) == ("mit", "en", "me/base")
    assert found["datasets"] == ["me/plays"]  # the other is none of the hub
    assert found["pipeline_tag"] == "text-generation"
    assert "plays" in found["tags"]
    assert "me/plays, book.txt" in model.card_text(full)


def test_save_pretrained__keeps_a_readme(tmp_path: Path) -> None:
    """Also one that this library wrote: it may hold what the caller of a second save does not give."""
    file, model = tmp_path / "README.md", small_run.small_model()
    full = Card(license="mit", data=["me/plays"], metrics={"bits_per_token": 2.5, "bits_per_token_stderr": 0.1})
    model.save_pretrained(tmp_path, model_card=full)
    text = file.read_text(encoding="utf-8")
    assert metadata(text)["license"] == "mit"
    assert "trained on me/plays" in text
    assert "at most 2.5000 ± 0.1000 bits per token" in text
    file.write_text(text + "\n## My remarks\n", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert file.read_text(encoding="utf-8") == text + "\n## My remarks\n"
    model.save_pretrained(tmp_path, model_card=Card(license="apache-2.0"))  # is asked for
    assert metadata(file.read_text(encoding="utf-8"))["license"] == "apache-2.0"
    file.write_text("Mine.", encoding="utf-8")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"README\.md was not written by gm_discrete"):
        model.save_pretrained(tmp_path, model_card=full)
    assert file.read_text(encoding="utf-8") == "Mine."


def trained(folder: Path, **options: Any) -> Any:
    trainer = small_run.small_trainer(folder, eval_dataset=small_run.rows(8), **options)
    trainer.train()
    return trainer


def test_trainer__its_card_has_the_bound_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(tmp_path, ema=0.9)
    trainer.save_model(str(tmp_path / "unmeasured"))
    assert "Held-out" not in (tmp_path / "unmeasured/README.md").read_text(encoding="utf-8")
    measured = trainer.evaluate()
    trainer.save_model()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    bits, error = measured["eval_bits_per_token"], measured["eval_bits_per_token_stderr"]
    assert f"Held-out data after 4 steps: at most {bits:.4f} ± {error:.4f} bits per token" in text
    assert "8 sequences" in text
    trainer.create_model_card(dataset=["me/plays"], license="mit", model_name="Plays")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"{bits:.4f} ± {error:.4f}" in text
    assert "It was trained on me/plays in 4 optimizer steps." in text
    assert (metadata(text)["license"], metadata(text)["datasets"]) == ("mit", ["me/plays"])
    trainer.create_model_card()  # what was given before stays
    assert metadata((tmp_path / "README.md").read_text(encoding="utf-8"))["license"] == "mit"
    monkeypatch.chdir(tmp_path)
    exec(code(text), {})
    trainer.state.global_step += 1  # other weights than those that were measured
    trainer.create_model_card()
    assert "Held-out" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_recipes__their_card_has_data_and_license(tmp_path: Path) -> None:
    model_card(trained(tmp_path), "me/plays", license="mit")
    found = metadata((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert (found["license"], found["datasets"]) == ("mit", ["me/plays"])
    for recipe in (images, mixed, proteins, sft, text_recipe):
        (options,) = (kind for name, kind in vars(recipe).items() if name in ARGUMENTS)
        assert "license" in options.__dataclass_fields__
        settings = weight_settings(options(), TrainingArguments(str(tmp_path), use_cpu=True), recipe.DISPLAY)
        assert "data" in settings
        assert "license" not in settings  # it may change when a run is resumed


def test_trainer__does_not_overwrite_a_readme_of_another_origin(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    (tmp_path / "README.md").write_text("Mine.", encoding="utf-8")
    trainer.save_model()
    trainer.create_model_card(license="mit")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "Mine."


def test_trainer__uploads_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, str] = {}

    class Hub:
        def upload_folder(self, folder_path: str, **_: Any) -> None:
            uploaded["README"] = (Path(folder_path) / "README.md").read_text(encoding="utf-8")

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = trained(tmp_path)
    trainer.hub_model_id = "me/plays-model"
    trainer.push_to_hub(license="apache-2.0", dataset="me/plays")
    assert MARK in uploaded["README"]
    assert "\n# plays-model\n" in uploaded["README"] or f"\n# {tmp_path.name}\n" in uploaded["README"]
    assert metadata(uploaded["README"])["license"] == "apache-2.0"
    assert "transformers model that has been" not in uploaded["README"]


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The README.md of each repository of a hub that is empty at first."""
    found: dict[str, str] = {}

    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def create_branch(self, **_: Any) -> None: ...

        def create_commit(self, repo_id: str, operations: Any, **_: Any) -> None:
            for operation in operations:
                if operation.path_in_repo == "README.md":
                    found[repo_id] = Path(operation.path_or_fileobj).read_text(encoding="utf-8")

    def load(repo_id: str, tags: Any = None, token: Any = None) -> ModelCard:
        if repo_id in found:
            return ModelCard(found[repo_id])
        card = ModelCard("---\nlibrary_name: transformers\ntags: [mine]\n---\n")
        card.text = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
        return card

    for module in ("utils.hub", "modeling_utils"):
        monkeypatch.setattr(f"transformers.{module}.hf_api", Hub)
        monkeypatch.setattr(f"transformers.{module}.create_and_tag_model_card", load)
    return found


def test_push_to_hub__uploads_our_card(uploaded: dict[str, str], tmp_path: Path) -> None:
    model = small_run.small_model()
    model.push_to_hub("me/first")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/second")
    for name, text in uploaded.items():
        assert f"\n# {name.removeprefix('me/')}\n" in text
        assert metadata(text)["library_name"] == "gm_discrete"
        assert "mine" in metadata(text)["tags"]
    assert set(uploaded) == {"me/first", "me/second"}


def test_push_to_hub__uploads_what_the_card_is_given(uploaded: dict[str, str], tmp_path: Path) -> None:
    model = small_run.small_model()
    card = Card(license="mit", data=["me/plays"], metrics={"bits_per_token": 2.5, "sequences": 40}, tags=["plays"])
    model.push_to_hub("me/first", model_card=card)
    model.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/second", model_card=card)
    for name, text in uploaded.items():
        assert f"\n# {name.removeprefix('me/')}\n" in text
        assert (metadata(text)["license"], metadata(text)["datasets"]) == ("mit", ["me/plays"])
        assert {"plays", "mine"} <= set(metadata(text)["tags"])
        assert "at most 2.5000 bits per token (an upper bound on −log₂ p, 40 sequences)" in text
    assert set(uploaded) == {"me/first", "me/second"}
    model.push_to_hub("me/first")  # keeps it
    assert metadata(uploaded["me/first"])["license"] == "mit"
    model.push_to_hub("me/first", model_card=Card(license="apache-2.0"))
    assert metadata(uploaded["me/first"])["license"] == "apache-2.0"
    uploaded["me/first"] = "---\nlicense: mit\n---\nMine."
    model.push_to_hub("me/first")
    assert "Mine." in uploaded["me/first"]
    with pytest.raises(ValueError, match="me/first was not written by gm_discrete"):
        model.push_to_hub("me/first", model_card=card)


def test_save_pretrained__uploads_the_readme_of_the_folder(uploaded: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("Mine.", encoding="utf-8")
    small_run.small_model().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/first")
    assert file.read_text(encoding="utf-8") == uploaded["me/first"] == "Mine."


def test_adapter__its_card_loads_base_and_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_run.small_model()
    base.save_pretrained(tmp_path / "base")
    trainer = trained(tmp_path / "run", model=add_lora(GMModel.from_pretrained(tmp_path / "base"), rank=2))
    trainer.save_model()
    text = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert metadata(text)["library_name"] == "peft"
    assert "\n# Adapter of a masked diffusion model\n" in text
    assert f"| parameters | {sum(weight.numel() for weight in base.parameters()):,} |" in text
    monkeypatch.chdir(tmp_path / "run")
    exec(code(text), {})
