"""Trains, scores and samples a language model whose text appears by jumps: masked, uniform, or any prior.

    accelerate launch recipes/text.py --config recipes/configs/shakespeare.yaml [--any_argument value]

Stopped at any moment and started again with the same command, it goes on from the last complete checkpoint. What it
leaves in `output_dir`: the model with its tokenizer (load them with `AutoModel` and `AutoTokenizer`), metrics.json,
curve.png, sample.txt, and how the sample came about as sample.gif and trajectory.png.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import (
    check_run,
    go_on,
    parse_arguments,
    plot_curve,
    print_once,
    settings_of_run,
    trainer_options,
    write_json,
)
from datasets import Dataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

from gm_discrete import (
    GMConfig,
    GMModel,
    LogitNormalTimeSampler,
    MaskedPath,
    MixturePath,
    UniformPath,
    UniformTimeSampler,
)
from gm_discrete.data import (
    byte_level_bpe,
    character_tokenizer,
    download_gcide,
    load_text,
    load_tokenizer,
    pack,
    sentencepiece_tokenizer,
    smiles_tokenizer,
    truncate,
)
from gm_discrete.evaluation import count_characters
from gm_discrete.likelihood import Likelihood
from gm_discrete.paths import Path as ProbabilityPath
from gm_discrete.pictures import animate, plot_trajectory
from gm_discrete.training import GMTrainer, last_complete_checkpoint

TOKENIZER_TEXTS = 100_000
"""Texts of a stream from which a tokenizer is made."""

SHOWN = {"prompt", "sample_length", "num_steps", "num_eval_samples", "max_eval_sequences", "download"}
"""Arguments that weights do not depend on."""


@dataclass
class TextArguments:
    """Data, path, model and sampling; everything else is `TrainingArguments`."""

    data: str = field(
        default="shakespeare", metadata={"help": "shakespeare, gcide, moses, a file or folder, or a hub id"}
    )
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    download: bool = field(default=False, metadata={"help": "fetch gcide first, with apt-get (no root needed)"})
    text_column: str = "text"
    streaming: bool = False
    validation_size: float | None = field(default=None, metadata={"help": "held out: below 1 a fraction, else rows"})
    tokenizer: str = field(
        default="characters", metadata={"help": "characters, bpe, sentencepiece, smiles, or a pretrained one"}
    )
    alphabet: str | None = field(default=None, metadata={"help": "the characters, if not those of the data"})
    tokenizer_size: int = field(default=8192, metadata={"help": "vocabulary of a bpe or sentencepiece tokenizer"})
    length: int = field(default=256, metadata={"help": "tokens per sequence"})
    packed: bool = field(
        default=True, metadata={"help": "cut the joined texts into blocks; else one text per sequence"}
    )
    pad_to_length: bool = field(
        default=False, metadata={"help": "texts that are not packed end in scored padding: samples have their lengths"}
    )
    add_eos: bool = field(default=True, metadata={"help": "end every text with the tokenizer's [EOS]"})
    max_eval_sequences: int = 512

    path: str = field(default="masked", metadata={"help": "masked, uniform, or unigram (frequencies in 10,000 blocks)"})
    rates: str = field(default="reversal", metadata={"help": "reversal or mixture, where the path is not masked"})
    schedule: str = field(default='{"type": "linear"}', metadata={"help": "JSON of a schedule"})
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

    times: str = field(default="logit_normal", metadata={"help": "logit_normal or uniform, the law of training times"})
    times_mean: float = 0.0
    times_std: float = 1.0
    muon: bool = field(
        default=False, metadata={"help": "Muon at muon_learning_rate for the matrices, AdamW for the rest"}
    )
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    ema_decay: float = field(default=0.0, metadata={"help": "0: no average of the weights"})
    num_eval_samples: int = 4

    prompt: str = field(default="", metadata={"help": "text to go on from; _ is a place to fill"})
    sample_length: int | None = None
    num_steps: int = 128


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((TextArguments, TrainingArguments), argv)
    set_seed(training.seed)
    output = Path(training.output_dir)
    with training.main_process_first(desc="tokenizer and data"):
        if options.download and options.data == "gcide" and training.process_index == 0:
            download_gcide()
        if training.local_process_index == 0:
            check_run(output, settings_of_run(options, training, SHOWN))
            build_tokenizer(options, output).save_pretrained(output)
        tokenizer = AutoTokenizer.from_pretrained(output)  # of all processes the same
        train, validation = (tokenized(options, tokenizer, split) for split in ("train", "validation"))
    model = GMModel(build_config(options, tokenizer, train))
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} symbols")

    if options.times not in ("logit_normal", "uniform"):
        raise ValueError(f"times={options.times!r} must be logit_normal or uniform")
    times = (
        LogitNormalTimeSampler(options.times_mean, options.times_std)
        if options.times == "logit_normal"
        else UniformTimeSampler()
    )
    trainer = GMTrainer(
        model,
        training,
        time_sampler=times,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        **trainer_options(options, training),
    )
    go_on(trainer)

    bound = trainer.bound()
    characters = [count_characters(tokenizer, torch.tensor([row["input_ids"]]))[0] for row in validation]
    per_character = Likelihood(bound.nats.cpu(), torch.tensor(characters))
    metrics = {
        "bits_per_character": per_character.bits_per_token,
        "bits_per_character_stderr": per_character.stderr,
        "bits_per_token": bound.bits_per_token,
        "perplexity": bound.perplexity,
        "sequences": len(bound.nats),
        "dynamics": bound.kind,
    }
    trainer.save_model(str(output))
    if training.should_save:
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "token", output / "curve.png")
        show_sample(options, tokenizer, output, training.device)
    print_once(
        training,
        f"\nheld-out bound: {metrics['bits_per_character']:.3f} ± {metrics['bits_per_character_stderr']:.3f} bits per "
        f"character ({metrics['dynamics']} dynamics, {metrics['sequences']} sequences of {options.length} tokens)\n"
        f"written to {output}/: model, metrics.json, curve.png, sample.txt, sample.gif, trajectory.png",
    )
    return metrics


def build_tokenizer(options: TextArguments, output: Path) -> Any:
    """The tokenizer of an earlier start of this run, or a new one."""
    if saved := last_complete_checkpoint(output):
        return AutoTokenizer.from_pretrained(saved)
    if options.tokenizer == "characters" and options.alphabet:
        return character_tokenizer(alphabet=options.alphabet)
    if options.tokenizer not in ("characters", "bpe", "sentencepiece", "smiles"):
        try:
            return load_tokenizer(options.tokenizer)
        except OSError as error:
            choices = "characters, bpe, sentencepiece or smiles, nor the name of a folder or of a tokenizer on the hub"
            raise ValueError(f"tokenizer={options.tokenizer!r} is none of {choices}") from error
    texts = (row["text"] for row in load(options, "train"))
    texts = islice(texts, TOKENIZER_TEXTS) if options.streaming else texts
    if options.tokenizer == "characters":
        return character_tokenizer(texts)
    if options.tokenizer == "bpe":
        return byte_level_bpe(texts, options.tokenizer_size)
    if options.tokenizer == "smiles":
        return smiles_tokenizer(texts)
    return sentencepiece_tokenizer(texts, options.tokenizer_size)


def load(options: TextArguments, split: str) -> Any:
    size = options.validation_size
    return load_text(
        options.data,
        split,
        name=options.data_config,
        text_column=options.text_column,
        streaming=options.streaming,
        validation_size=int(size) if size and size >= 1 else size,
    )


def tokenized(options: TextArguments, tokenizer: Any, split: str) -> Any:
    """Sequences of token ids; of the validation split an evenly spread choice (of a stream, the first)."""
    if options.packed and options.pad_to_length:
        raise ValueError("pad_to_length=True is for packed=False: what is packed has no padding")
    cut = pack if options.packed else partial(truncate, pad_to_length=options.pad_to_length)
    rows = cut(load(options, split), tokenizer, options.length, add_eos=options.add_eos)
    if split == "train":
        return rows if isinstance(rows, Dataset) else rows.shuffle(seed=0, buffer_size=10_000)
    if not isinstance(rows, Dataset):
        return Dataset.from_list(list(rows.take(options.max_eval_sequences)))
    count = min(options.max_eval_sequences, len(rows))
    return rows.select([i * len(rows) // count for i in range(count)])


def build_config(options: TextArguments, tokenizer: Any, train: Any) -> GMConfig:
    return GMConfig(
        path=build_path(options, tokenizer, train),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        max_position_embeddings=options.length,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **json.loads(options.model_options),
    )


def build_path(options: TextArguments, tokenizer: Any, train: Any) -> ProbabilityPath:
    size, schedule = len(tokenizer), json.loads(options.schedule)
    if options.path == "masked":
        return MaskedPath(size, tokenizer.mask_token_id, schedule)
    if options.path == "uniform":
        return UniformPath(size, schedule, options.rates, tokenizer.all_special_ids)
    if options.path == "unigram":
        rows: Any = (
            train.select(range(0, len(train), -(-len(train) // 10_000))) if isinstance(train, Dataset) else train
        )
        counts = Counter(token for row in islice(rows, 10_000) for token in row["input_ids"])
        never = [token for token in (tokenizer.mask_token_id, tokenizer.pad_token_id) if token is not None]
        return MixturePath.unigram([counts[token] for token in range(size)], schedule, options.rates, never)
    raise ValueError(f"path={options.path!r} must be masked, uniform or unigram")


def show_sample(options: TextArguments, tokenizer: Any, output: Path, device: Any) -> None:
    """Loads the model that was written, fills a prompt, and writes it with pictures of how it came about."""
    model = GMModel.from_pretrained(output).to(device)
    length = options.sample_length or options.length
    shown: dict[str, Any] = {"num_steps": options.num_steps, "seed": 0, "return_dict_in_generate": True}
    shown["output_trajectory"] = True
    if options.prompt:
        ids = [
            tokenizer.mask_token_id if piece == "_" else token
            for piece in _pieces(options.prompt)
            for token in (tokenizer(piece, add_special_tokens=False)["input_ids"] if piece != "_" else [0])
        ]
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise ValueError(f"prompt={options.prompt!r} holds characters that the tokenizer does not know")
        sample = model.generate(torch.tensor([ids]), max_new_tokens=max(0, length - len(ids)), **shown)
    else:
        sample = model.generate(length=length, **shown)
    text = tokenizer.decode(sample.sequences[0].cpu(), skip_special_tokens=options.pad_to_length)
    (output / "sample.txt").write_text(text)
    animate(sample.trajectory, tokenizer, output / "sample.gif")
    masks = model.config.mask_token_id if model.path.rates == "masked" else None
    plot_trajectory(sample.trajectory, output / "trajectory.png", masks)
    print(f"\nprompt: {options.prompt!r}\n{'-' * 64}\n{text}\n{'-' * 64}")


def _pieces(prompt: str) -> list[str]:
    """The prompt cut at every `_`, which stand for themselves."""
    return [piece for part in prompt.split("_") for piece in ("_", part)][1:]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last checkpoint")
