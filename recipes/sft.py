"""Fine-tunes a pretrained model on prompts and completions, or on conversations: as a whole, or by LoRA adapters.

    accelerate launch recipes/sft.py --config recipes/configs/sft_smollm2.yaml [--any_argument value]

The model is a language model of transformers, which becomes a diffusion model, or a `GMModel`. Prompts are observed, never
noised; completions are noised and scored. If it is interrupted, the same command resumes it from the last complete
checkpoint. It writes to `output_dir`: the model and its tokenizer (load them with `AutoModel` and `AutoTokenizer`) or the
adapter alone, metrics.json, curve.png, and sample.txt with answers to some prompts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imports start at the root of the repository: `datasets` in this folder is another package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

from gm_discrete import GMModel
from gm_discrete.data import ChatReport, load_chat, prompt_ids, tokenize_chat
from gm_discrete.training import GMTrainer, last_complete_checkpoint, published
from recipes.common import (
    check_run,
    model_card,
    parse_arguments,
    parse_sampler,
    plot_curve,
    print_once,
    run_script,
    running,
    time_sampler,
    train,
    trainer_options,
    weight_settings,
    write_json,
)
from recipes.options import check_sampling, json_dict
from recipes.pretrained import (
    BackboneArguments,
    backbone_tokenizer,
    check_backbone,
    load_backbone,
    publish,
    with_adapter,
)

Tokenizer = Any
"""A `PreTrainedTokenizerBase`, whose annotations allow ids to be strings and lists."""

FEWEST_HELD_OUT = 2
"""The least number of held-out examples, of which a standard error needs two."""

DISPLAY = {
    "prompts", "num_prompts", "answer_length", "num_steps", "sampler", "merge", "num_eval_samples", "max_eval_examples",
}  # fmt: skip
"""Arguments that the weights do not depend on: they may change when a run is resumed."""


@dataclass
class SFTArguments(BackboneArguments):
    """Arguments for data, path, model and sampling. All others are those of `TrainingArguments`."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "rows of prompts and completions, or of messages: a jsonl, csv or parquet file, folder or hub id"
        },
    )
    license: str | None = field(default=None, metadata={"help": "of the model, for its card, such as apache-2.0"})
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    messages_column: str = field(default="messages", metadata={"help": "column of the conversations"})
    prompt_column: str = field(default="prompt", metadata={"help": "column of the prompts"})
    completion_column: str = field(default="completion", metadata={"help": "column of the completions"})
    encoding: str | None = field(default=None, metadata={"help": "of local files; default: found from their content"})
    validation_size: float | None = field(default=None, metadata={"help": "fraction or number of held-out rows"})
    chat_template: str | None = field(
        default=None, metadata={"help": "file of a chat template; default: the tokenizer's"}
    )
    turns: str = field(
        default="all",
        metadata={"help": "all: an example is a conversation; each: one answer with all that comes before it"},
    )
    length: int = field(default=1024, metadata={"help": "the most tokens of an example"})
    packed: bool = field(
        default=False, metadata={"help": "several examples in a sequence, which do not attend to each other"}
    )
    max_eos: int = field(
        default=64, metadata={"help": "examples end with 1 to this many end-of-text tokens, a random number of them"}
    )
    max_eval_examples: int = field(default=512, metadata={"help": "held-out examples that are scored"})

    path: str = field(
        default="masked", metadata={"help": "prior, of a language model of transformers: masked or uniform"}
    )
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig, likewise"})

    times: str = field(
        default="logit_normal", metadata={"help": "distribution of training times: logit_normal or uniform"}
    )
    times_mean: float = field(default=0.0, metadata={"help": "mean of logit κ(t), for logit_normal"})
    times_std: float = field(default=1.0, metadata={"help": "standard deviation of logit κ(t), for logit_normal"})
    muon: bool = field(
        default=False, metadata={"help": "Muon for the weight matrices, AdamW with learning_rate for the rest"}
    )
    muon_learning_rate: float = field(default=0.02, metadata={"help": "learning rate of Muon"})
    muon_momentum: float = field(default=0.95, metadata={"help": "momentum of Muon"})
    ema_decay: float = field(default=0.0, metadata={"help": "decay of the average of the weights; 0: no average"})
    num_eval_samples: int = field(default=4, metadata={"help": "draws of the bound per held-out example"})

    prompts: list[str] | None = field(
        default=None, metadata={"help": "prompts that are answered; default: held-out ones"}
    )
    num_prompts: int = field(default=3, metadata={"help": "number of held-out prompts that are answered"})
    answer_length: int = field(default=128, metadata={"help": "tokens of an answer, those after its end among them"})
    num_steps: int = field(default=64, metadata={"help": "sampling steps"})
    sampler: str = field(default="tau_leaping", metadata={"help": "name or JSON of a sampler"})


@dataclass
class Data:
    """The examples for training and held out, the prompts to answer, and what became of the rows."""

    train: Dataset
    validation: Dataset
    prompts: list[Any]
    reports: dict[str, ChatReport]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options, training = parse_arguments((SFTArguments, TrainingArguments), argv)
    with running(training):
        return run(options, training)


def run(options: SFTArguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains, scores and answers."""
    output = Path(str(training.output_dir))
    trainer, data = build_trainer(options, training)
    train(trainer)
    bound = trainer.bound()
    metrics: dict[str, Any] = {
        "bits_per_completion_token": bound.bits_per_token,
        "bits_per_completion_token_stderr": bound.stderr,
        "perplexity": bound.perplexity,
        "examples": len(bound.nats),
        "completion_tokens": int(bound.num_tokens.sum()),
        "dynamics": bound.kind,
        "rows": {name: vars(report) for name, report in data.reports.items()},
    }
    publish(options, trainer)
    model_card(trainer, options.data, options.backbone, license=options.license)
    if training.should_save:
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "token", output / "curve.png")
        model = GMModel.from_pretrained(output).to(training.device)
        text = answered(options, trainer.processing_class, model, data.prompts)
        with published(output) as draft:
            (draft / "sample.txt").write_text(text, encoding="utf-8")
        print_once(training, f"\n{text}")
    what = "adapter" if options.lora_rank and not options.merge else "model"
    print_once(
        training,
        f"held-out bound: {bound.bits_per_token:.3f} ± {bound.stderr:.3f} bits per completion token ({bound.kind} dynamics, "
        f"{len(bound.nats)} examples)\nwritten to {output}/: {what}, metrics.json, curve.png, sample.txt",
    )
    return metrics


def build_trainer(options: SFTArguments, training: TrainingArguments) -> tuple[GMTrainer, Data]:
    """The trainer that holds tokenizer, data and model; and what else is known of the data."""
    for name in ("backbone", "data"):
        if getattr(options, name) is None:
            raise ValueError(f"{name}=None: give --{name}")
    check_backbone(options)
    set_seed(training.seed)
    output = Path(str(training.output_dir))
    with training.main_process_first(desc="tokenizer and data"):
        if training.local_process_index == 0:
            check_run(output, weight_settings(options, training, DISPLAY))
        tokenizer = build_tokenizer(options, output)
        data = build_data(options, tokenizer, training.seed)
    for name, report in data.reports.items():
        print_once(training, f"{name}: {report}")
    build = partial(build_model, tokenizer=tokenizer)
    model = build(options)
    for prompt in data.prompts:
        check_sampling(model, **sampling(options, tokenizer, prompt))
    model = with_adapter(options, training, model, tokenizer, build)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    print_once(training, f"{len(data.train):,} sequences; {trained:,} of {total:,} parameters are trained")
    trainer = GMTrainer(
        model,
        training,
        time_sampler=time_sampler(options.times, options.times_mean, options.times_std),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        **trainer_options(options, training),
    )
    return trainer, data


def build_data(options: SFTArguments, tokenizer: Tokenizer, seed: int) -> Data:
    """Loads and tokenises both splits; of the held-out examples `max_eval_examples`, evenly spaced.

    Raises:
        ValueError: there are too few of them.
    """
    rows = {split: load(options, split) for split in ("train", "validation")}
    turns: Any = options.turns
    train_rows, trained = tokenize_chat(
        rows["train"], tokenizer, options.length, max_eos=options.max_eos, turns=turns, packed=options.packed, seed=seed
    )
    validation, held_out = tokenize_chat(rows["validation"], tokenizer, options.length, turns=turns)
    if len(validation) < FEWEST_HELD_OUT:
        raise ValueError(
            f"held out: {held_out}, and at least {FEWEST_HELD_OUT} are needed; give a larger --validation_size, such as 0.2"
        )
    count = min(options.max_eval_examples, len(validation))
    validation = validation.select([at * len(validation) // count for at in range(count)])
    reports = {"training": trained, "held out": held_out}
    return Data(train_rows, validation, given_prompts(options, rows["validation"]), reports)


def build_tokenizer(options: SFTArguments, output: Path) -> Tokenizer:
    """The tokenizer of the run that is resumed, or of the backbone, with the chat template of the options."""
    saved = last_complete_checkpoint(output)
    tokenizer = AutoTokenizer.from_pretrained(saved) if saved else backbone_tokenizer(str(options.backbone))
    if options.chat_template:
        file = Path(options.chat_template)
        if not file.is_file():
            raise ValueError(f"chat_template={options.chat_template!r} is no file; give one that holds the template")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return tokenizer


def build_model(options: SFTArguments, tokenizer: Tokenizer) -> GMModel:
    """The pretrained model."""
    return load_backbone(
        options, tokenizer, options.path, options.length, json_dict("model_options", options.model_options)
    )


def load(options: SFTArguments, split: str) -> Dataset:
    """Loads one split."""
    size = options.validation_size
    columns = {name: getattr(options, f"{name}_column") for name in ("messages", "prompt", "completion")}
    return load_chat(
        str(options.data),
        split,
        name=options.data_config,
        columns=columns,
        encoding=options.encoding,
        validation_size=int(size) if size and size >= 1 else size,
    )


def given_prompts(options: SFTArguments, rows: Dataset) -> list[Any]:
    """The prompts to answer: those of the options, or the first of `rows`; texts, or the messages before the last answer."""
    is_chat = "messages" in rows.column_names
    if options.prompts:
        return [[{"role": "user", "content": text}] if is_chat else text for text in options.prompts]
    first: Any = rows.select(range(min(options.num_prompts, len(rows))))
    if not is_chat:
        return list(first["prompt"])
    found = []
    for messages in first["messages"]:
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        found.append([{key: part[key] for key in ("role", "content")} for part in messages[: (answers or [None])[-1]]])
    return found


def sampling(options: SFTArguments, tokenizer: Tokenizer, prompt: Any) -> dict[str, Any]:
    """The arguments of `generate` for the answer to a prompt.

    Raises:
        ValueError: the tokenizer does not have the characters of the prompt.
    """
    ids = prompt_ids(tokenizer, prompt)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise ValueError(f"prompt={prompt!r} holds characters that are not in the tokenizer's vocabulary")
    settings = {"max_new_tokens": options.answer_length, "num_steps": options.num_steps, "seed": 0}
    return settings | {"input_ids": torch.tensor([ids]), "sampler": parse_sampler(options.sampler)}


def answered(options: SFTArguments, tokenizer: Tokenizer, model: GMModel, prompts: list[Any]) -> str:
    """The prompts with the model's answers, each up to its first end-of-text token."""
    parts = []
    for prompt in prompts:
        settings = sampling(options, tokenizer, prompt)
        ids = settings["input_ids"].shape[1]
        sample = model.generate(**settings | {"input_ids": settings["input_ids"].to(model.device)})[0].tolist()
        answer = sample[ids:]
        answer = answer[: answer.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in answer else answer
        shown = (
            prompt if isinstance(prompt, str) else "\n".join(f"{part['role']}: {part['content']}" for part in prompt)
        )
        parts.append(f"{shown}\n{'-' * 32}\n{tokenizer.decode(answer)}\n{'=' * 32}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    run_script(main)
