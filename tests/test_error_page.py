"""docs/how-to/errors.md: every message in its tables is one that the library gives, for the mistake that leads to it."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForCausalLM, TrainingArguments

import gm_discrete
from gm_discrete import (
    Blocks,
    ClassifierGuidance,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    MixturePath,
    ProductPath,
    UniformPath,
    any_order_likelihood,
    conditional_loss,
    field_likelihood,
    likelihood_bound,
)
from gm_discrete.data import (
    character_tokenizer,
    encoded_dataset,
    fit_codecs,
    load_images,
    load_table,
    load_text,
    pack,
)
from gm_discrete.training import GMTrainer, add_lora, load_adapter
from gm_discrete.training.lock import LOCK, machine, started
from recipes import text

PAGE = Path(__file__).parents[1] / "docs/how-to/errors.md"
SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
Z = torch.arange(32).view(4, 8) % 8
ROWS = Dataset.from_dict({"input_ids": Z.tolist()})
TOKENIZER = character_tokenizer(alphabet="abcdef")
PROMPT = torch.zeros(1, 4, dtype=torch.long)


def model(path: Any = None, **settings: Any) -> GMModel:
    return GMModel(GMConfig(path=path or MaskedPath(9), **SIZE, **settings))


def product() -> GMModel:
    return model(ProductPath(a=MaskedPath(5), b=GaussianPath({"flow": 1.0})))


def broken() -> GMModel:
    found = model()
    found.heads["tokens"].weight.data.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return found


def trainer(folder: str = "run", *, of: GMModel | None = None, data: Any = ROWS, **options: Any) -> GMTrainer:
    parts = {
        name: options.pop(name) for name in ("processing_class", "compute_metrics", "eval_dataset") if name in options
    }
    usual = {"max_steps": 2, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    return GMTrainer(of or model(), TrainingArguments(folder, **(usual | options)), train_dataset=data, **parts)


def saved(folder: str) -> None:
    trainer(folder, save_strategy="steps", save_steps=1).train()


def earlier_run() -> None:
    saved("again")
    trainer("again", save_strategy="steps").train()


def another_model() -> None:
    saved("other")
    trainer("other", of=model(MaskedPath(12))).train(resume_from_checkpoint=True)


def busy() -> None:
    """As if the process that started this one trained in the folder."""
    other = os.getppid()
    owner = machine() | {"pid": other, "started": started(other)}
    Path("busy").mkdir()
    Path("busy", LOCK).write_text(json.dumps(owner), encoding="utf-8")
    trainer("busy").train()


def csv(name: str, content: str) -> str:
    Path(name).write_text(content, encoding="utf-8")
    return name


def unequal_images() -> None:
    Path("pictures").mkdir()
    for side in (8, 9):
        Image.new("L", (side, side)).save(f"pictures/{side}.png")
    list(load_images("pictures", validation_size=0))


def unknown_category() -> None:
    codecs = fit_codecs(Dataset.from_dict({"town": ["a", "b"] * 20, "n": list(range(40))}))
    encoded_dataset(Dataset.from_dict({"town": ["z", "a"], "n": [1, 2]}), codecs)


def other_adapter() -> None:
    add_lora(model(), rank=2).save_pretrained("ad")
    load_adapter(GMModel(GMConfig(path=MaskedPath(9), **(SIZE | {"hidden_size": 64}))), "ad")


def path_of_ones_own() -> None:
    model().save_pretrained("own")
    file = Path("own/config.json")
    file.write_text(file.read_text(encoding="utf-8").replace('"masked"', '"mine"'), encoding="utf-8")
    GMModel.from_pretrained("own")


def causal() -> None:
    model().save_pretrained("causal")
    AutoModelForCausalLM.from_pretrained("causal")


def recipe(*arguments: str) -> None:
    Path("poem.txt").write_text("Shall I compare thee to a summer day?\n" * 49, encoding="utf-8")
    small = "--data poem.txt --length 32 --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --max_steps 1"
    text.main([*small.split(), "--report_to", "none", "--output_dir", "recipe", *arguments])


def reject(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.sum(1).double()


MISTAKES: dict[str, Callable[[], object]] = {
    "GMConfig takes no argument hiden_size": lambda: GMConfig(path=MaskedPath(9), hiden_size=32),
    "hidden_size=30": lambda: GMConfig(path=MaskedPath(9), hidden_size=30, num_attention_heads=4),
    "vocab_size=20": lambda: GMConfig(path=MaskedPath(9), vocab_size=20),
    "path='mask'": lambda: GMConfig(path="mask"),  # pyright: ignore[reportArgumentType]
    "divergence='mse'": lambda: GMConfig(path=MaskedPath(9), divergence="mse"),
    "class_labels are given": lambda: conditional_loss(model(), Z, class_labels=torch.zeros(4, dtype=torch.long)),
    "gm_discrete.data.load_chorales": lambda: getattr(gm_discrete.data, "load_chorales"),  # noqa: B009
    "z must be a long tensor [B, L], got torch.float32": lambda: conditional_loss(model(), torch.rand(2, 8)),
    "z must be a long tensor [B, L], got torch.int64": lambda: conditional_loss(model(), Z[0]),
    "z holds ids": lambda: conditional_loss(model(), torch.full((2, 8), 9)),
    "z holds the id 8": lambda: conditional_loss(model(), torch.full((2, 8), 8)),
    "tokenizer has 10 tokens": lambda: trainer(processing_class=TOKENIZER),
    "dataset holds fewer tokens": lambda: pack(Dataset.from_dict({"text": ["abc"]}), TOKENIZER, 64),
    "source='nowhere.txt'": lambda: load_text("nowhere.txt"),
    "text_column='text'": lambda: load_text(csv("a.csv", "words\nhello\nyou\n")),
    "d.csv": lambda: load_table(csv("d.csv", "day,n\n" + "01/02/2024,1\n" * 40)),
    "e.csv": lambda: load_table(csv("e.csv", "price;w\n" + "43.250;42,99\n" * 40)),
    "images have the shapes": unequal_images,
    "data must hold finite numbers": lambda: GaussianPath.fit(torch.full((4, 1, 1), torch.nan)),
    "the loss is nan": lambda: trainer(of=broken()).train(),
    "output_dir='again'": earlier_run,
    "output_dir='none'": lambda: trainer("none").train(resume_from_checkpoint=True),
    "other/checkpoint-2": another_model,
    "output_dir='busy'": busy,
    "train_dataset is empty": lambda: trainer(data=ROWS.select([])).train(),
    "data_collator is missing": lambda: trainer(of=product()),
    "No columns in the dataset": lambda: trainer(data=Dataset.from_dict({"text": ["a", "b"]})).train(),
    "class_labels=[0]": lambda: model().generate(class_labels=[0]),
    "label_smoothing_factor": lambda: trainer(label_smoothing_factor=0.1),
    "compute_metrics": lambda: trainer(compute_metrics=print),
    "auto_find_batch_size": lambda: trainer(auto_find_batch_size=True),
    "metric_for_best_model": lambda: trainer(eval_dataset=ROWS, metric_for_best_model="accuracy"),
    "predict": lambda: trainer().predict(ROWS),
    "prompt='Zürich'": lambda: recipe("--prompt", "Zürich"),
    "the held-out part": lambda: recipe("--length", "512"),
    "pad_to_length=True": lambda: recipe("--pad_to_length", "true"),
    "model_options": lambda: recipe("--model_options", "{a}"),
    "resume_from_checkpoint='x'": lambda: recipe("--resume_from_checkpoint", "x"),
    "generate takes no argument temprature": lambda: model().generate(temprature=0.5),
    "generate takes no argument num_beams": lambda: model().generate(num_beams=4),
    "generate takes no argument steps": lambda: model().generate(steps=8),
    "input_ids is a str": lambda: model().generate("hello"),  # pyright: ignore[reportArgumentType]
    "input_ids is a BatchEncoding": lambda: model().generate(TOKENIZER("abc", return_tensors="pt")),  # pyright: ignore[reportArgumentType]
    "input_ids must be a long tensor": lambda: model().generate(PROMPT[0]),
    "max_new_tokens=4": lambda: model().generate(max_new_tokens=4),
    "sampler='ddim'": lambda: model().generate(sampler="ddim"),
    "sampler=FirstHitting()": lambda: model(UniformPath(9)).generate(sampler="first_hitting"),
    "use_cache=True": lambda: model().generate(use_cache=True),
    "eos_token_id=3": lambda: model().generate(PROMPT, eos_token_id=3),
    "blocks=Blocks": lambda: model(UniformPath(9)).generate(blocks=Blocks(4)),
    "guidance_scale=2.0": lambda: model().generate(guidance_scale=2.0),
    "guidance cannot": lambda: model(UniformPath(9, rates="mixture")).generate(guidance=ClassifierGuidance(reject)),
    "generators=": lambda: model(GaussianPath({"flow": 1.0})).generate(generators={"jump": 1.0}),
    "bad_words_ids=": lambda: model().generate(length=4, bad_words_ids=[[token] for token in range(8)]),
    "a coupled path": lambda: model(MixturePath(9, coupled=True), max_position_embeddings=8).generate(batch_size=2),
    "given has": lambda: product().generate(given={"c": torch.zeros(2)}),
    "the landing distribution": lambda: broken().generate(length=4, num_steps=2),
    "40 scored positions": lambda: any_order_likelihood(model(), torch.zeros(1, 40, dtype=torch.long)),
    "orders of revealing masks": lambda: any_order_likelihood(model(UniformPath(9)), Z),
    "likelihood_bound needs": lambda: likelihood_bound(model(GaussianPath({"flow": 1.0})), torch.zeros(2, 4, 1)),
    "the fields share": lambda: field_likelihood(
        product(), {"a": torch.zeros(2, 1, dtype=torch.long), "b": torch.zeros(2, 1, 1)}
    ),
    "scored has shape": lambda: likelihood_bound(model(), Z, scored=torch.ones(8, dtype=torch.bool)),
    "nats=": lambda: likelihood_bound(broken(), Z[:2], num_samples=1),
    "path='mine'": path_of_ones_own,
    "Unrecognized configuration class": causal,
    "ad holds": other_adapter,
    "targets=": lambda: add_lora(model(), targets=["q_proj"]),
    "the batch of step 1": lambda: trainer(data=ROWS.add_column("labels", [[-100] * 8] * 4)).train(),  # pyright: ignore[reportCallIssue]
    "1 of 2 rows": unknown_category,
    "column 'n'": unknown_category,
    "20 positions": lambda: model(max_position_embeddings=8).generate(length=20, num_steps=1),
}  # fmt: skip
"""How to get each message of the page, by its beginning."""

MESSAGES: list[tuple[str, str]] = re.findall(
    r"^\| `(\w+): (.*?)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
)
"""(kind, message) of each row."""


def pattern(message: str) -> str:
    """A regular expression for a message, in which `…` stands for anything, also for itself."""
    return ".*".join(re.escape(part) for part in message.split("…"))


def test_error_page__every_message_has_its_mistake() -> None:
    assert len(MESSAGES) > 60
    for start in MISTAKES:
        assert sum(message.startswith(start) for _, message in MESSAGES) == 1, start
    assert len(MESSAGES) == len(MISTAKES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", MISTAKES)
def test_error_page__has_the_message(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind, message = next(row for row in MESSAGES if row[1].startswith(start))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            MISTAKES[start]()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
    if kind == "UserWarning":
        found = "\n".join(f"UserWarning: {warning.message}" for warning in caught)
    elif kind == "warning":
        found = "\n".join(f"warning: {record}" for record in caplog.messages)
    assert re.search(pattern(f"{kind}: {message}"), found, flags=re.DOTALL), found
