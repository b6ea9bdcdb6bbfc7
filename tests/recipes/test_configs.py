"""Every config of recipes/text.py has known arguments, builds its model and trains; the commands of the README run."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainingArguments

from gm_discrete import GMModel
from tests.helpers import forks, languages, published
from tests.helpers.recipe_configs import configs

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"

CONFIGS = configs("text")
GPT2_SIZE = 50257
RECIPES_OF_CONFIGS = {
    "recipes/text.py": "TextArguments", "recipes/images.py": "ImageArguments", "recipes/mixed.py": "MixedArguments",
    "recipes/sft.py": "SFTArguments", "recipes/proteins.py": "ProteinArguments",
}  # fmt: skip
"""Recipes that take a config → the class of their arguments."""


class Symbols:
    """The attributes of a tokenizer that a config needs: that of GPT-2 with padding and mask token, or characters."""

    def __init__(self, options: Any) -> None:
        self.size = GPT2_SIZE + 2 if options.tokenizer == "gpt2" else 84
        self.pad_token_id, self.eos_token_id, self.mask_token_id = (self.size - 3 + i for i in range(3))
        self.all_special_ids = [self.pad_token_id, self.eos_token_id, self.mask_token_id]

    def __len__(self) -> int:
        return self.size


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like that of GPT-2: bytes, one token that ends a text, neither padding nor mask."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("gpt2")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def parse(recipe: ModuleType, *argv: object) -> tuple[Any, Any]:
    return recipe.parse_arguments((recipe.TextArguments, TrainingArguments), [str(part) for part in argv])


def test_text_recipe__configs_exist() -> None:
    names = {"shakespeare", "shakespeare_uniform", "gcide_text8", "openwebtext", "moses", "moses_edits"}
    assert names <= {file.stem for file in CONFIGS}
    everything = {file.stem for file in (RECIPES / "configs").glob("*.yaml")}
    others = [file for recipe in ("images", "mixed", "sft", "proteins") for file in configs(recipe)]
    assert {file.stem for file in [*CONFIGS, *others]} == everything


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_text_recipe__a_config_describes_a_model_of_full_size(recipe: ModuleType, file: Path) -> None:
    options, _ = parse(recipe, "--config", file)
    config = recipe.build_config(options, Symbols(options), None)
    with torch.device("meta"):
        model = GMModel(config)
    count = sum(weight.numel() for weight in model.parameters())
    if file.stem == "openwebtext":
        assert 160e6 < count < 180e6
    assert count > 1e6
    assert config.max_position_embeddings == options.length


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_text_recipe__a_config_trains_for_two_steps(
    recipe: ModuleType, tiny: list[str], gpt2: Path, corpus: Path, tmp_path: Path, file: Path
) -> None:
    options, training = parse(recipe, "--config", file, "--use_cpu", "true")
    stand_ins = ["--output_dir", str(tmp_path)]
    if options.tokenizer == "gpt2":
        stand_ins += ["--tokenizer", str(gpt2), "--validation_size", "8"]
    if options.alphabet:  # of the text that the config is for
        text = "".join(letter for letter in corpus.read_text(encoding="utf-8").lower() if letter in options.alphabet)
        (tmp_path / "letters.txt").write_text(text, encoding="utf-8")
        stand_ins += ["--data", str(tmp_path / "letters.txt")]
    metrics = recipe.main(["--config", str(file), *tiny, *stand_ins])
    assert 0 < metrics["bits_per_character"] < 100
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 2
    config = GMModel.from_pretrained(tmp_path).config
    rates = options.path if options.path in ("masked", "edits") else options.rates
    assert config.build_path().rates == metrics["dynamics"] == rates
    assert (tmp_path / "checkpoint-2" / "ema-0.safetensors").exists() == bool(options.ema_decay)
    assert training.output_dir == f"runs/{file.stem}"


def test_text_recipe__moses_as_edits_differs_in_the_path_alone() -> None:
    masked, edits = (
        yaml.safe_load((RECIPES / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("moses", "moses_edits")
    )
    differs = {name for name in masked.keys() | edits.keys() if masked.get(name) != edits.get(name)}
    assert differs == {"path", "prior", "pad_to_length", "add_eos", "num_steps", "output_dir"}


def test_text_recipe__the_command_line_has_precedence(recipe: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "length: 32\nhidden_size: 64\nlearning_rate: 3e-4\nmuon: true\noutput_dir: from_yaml\n", encoding="utf-8"
    )
    options, training = parse(recipe, "--hidden_size", 128, "--config", config, "--muon", "false")
    assert (options.length, options.hidden_size, options.muon) == (32, 128, False)
    assert training.output_dir == "from_yaml"
    assert training.learning_rate == 3e-4  # a string to YAML, which wants a point in it
    options, training = parse(recipe, "--config", config, "--output_dir", "from_line")
    assert (options.hidden_size, options.muon, training.output_dir) == (64, True, "from_line")


def test_text_recipe__an_unknown_key_is_an_error(recipe: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("hiden_size: 64\nlength: 32\n", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown arguments: hiden_size"):
        parse(recipe, "--config", config)
    with pytest.raises(ValueError, match="--hiden_size"):
        parse(recipe, "--hiden_size", 64)


@pytest.mark.parametrize(
    ("name", "value"), [("path", "masks"), ("rates", "fast"), ("times", "bell"), ("tokenizer", "./no")]
)
def test_text_recipe__an_unknown_choice_is_an_error(
    recipe: ModuleType, tiny: list[str], tmp_path: Path, name: str, value: str
) -> None:
    path = ["--path", "uniform"] if name == "rates" else []
    with pytest.raises((ValueError, OSError), match=value):
        recipe.main([*tiny, *path, f"--{name}", value, "--output_dir", str(tmp_path)])
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_documentation__its_commands_run(
    recipe: ModuleType,
    tiny: list[str],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every shell command of the README and the docs but make's, at reduced size and without its launcher, one by one.

    Of configs on their own data, of pretrained models, and of programs that take long, only arguments are read: their own
    tests run them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the script's choice must not outlive the test
    (tmp_path / "recipes").symlink_to(RECIPES)
    (tmp_path / "my_book.txt").write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    pages = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("text", "training", "checkpoints"))]
    pages += sorted(set((ROOT / "docs").glob("*.md")) - set(pages))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = {tuple(shlex.split(line, comments=True)): None for line in lines}  # each once, in order
    ran: list[str] = []
    for words in map(list, commands):
        if not words:
            continue
        name = next((word for word in words if word.endswith(".py")), "make")
        arguments = words[words.index(name) + 1 :] if name in words else []
        if name in RECIPES_OF_CONFIGS:
            module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
            kinds = (getattr(module, RECIPES_OF_CONFIGS[name]), TrainingArguments)
            module.parse_arguments(kinds, [*arguments, "--use_cpu", "true"])
            if name == "recipes/text.py" and "--data" in arguments and "--backbone" not in arguments:
                recipe.main([*tiny, *arguments])
        elif name == "benchmarks/perplexity.py":
            few = ["--limit", "4", "--bound-samples", "1", "--num-samples", "2", "--num-steps", "2", "--threads", "1"]
            importlib.import_module("perplexity").main([*arguments, *few])
        elif name == "recipes/toy.py" or name.startswith("benchmarks/"):
            run([str(ROOT / name), *arguments, "--help"])
        elif "-m" in words:
            module, *arguments = words[words.index("-m") + 1 :]
            run(["-m", module, *stood_in(module, arguments, tmp_path)])
            name = module
        else:
            assert words[0] == "make"
        ran.append(name)
    assert {"recipes/text.py", "benchmarks/perplexity.py", "gm_discrete.convert", "make"} <= set(ran)


def stood_in(module: str, arguments: list[str], folder: Path) -> list[str]:
    """The arguments of a module's command line, of files that the test makes in place of those that only users have."""
    if module == "gm_discrete.convert":
        weights = {f"backbone.{name}": tensor.contiguous() for name, tensor in published.state_dict().items()}
        source = folder / Path(arguments[0]).name
        family = source.name.partition("-")[0].lower()
        if family in languages.CONFIGS:
            return [str(languages.write(source, family, languages.state_dict(family), block_size=None)), *arguments[1:]]
        if source.suffix:
            save_file(weights, source)
            return [str(source), *arguments[1:], "--num-attention-heads", "2"]
        source.mkdir()
        save_file(weights, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps(published.CONFIGS["mdlm"]), encoding="utf-8")
        return [str(source), *arguments[1:]]
    assert module == "gm_discrete.evaluation.harness"
    (folder / "rows.jsonl").write_text('{"text": "to be, or not to be"}\n', encoding="utf-8")
    task = {"task": "one_line", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}}
    task |= {
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    (folder / "one_line.yaml").write_text(
        yaml.safe_dump({**task, "metric_list": [{"metric": "bits_per_byte"}]}), encoding="utf-8"
    )
    at = arguments.index("--tasks") + 1
    return [*arguments[:at], "one_line", *arguments[at + 1 :], "--include_path", str(folder)]


def run(command: list[str]) -> None:
    """In a process of its own: its modules are called like others, and it may start processes itself."""
    assert forks.start("program", Path.cwd(), *command) == [0], Path("log.txt").read_text(encoding="utf-8")[-4000:]
