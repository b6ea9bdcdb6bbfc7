"""Trains, scores and samples a discrete diffusion language model, with masked, uniform or unigram noise, or by edits.

    accelerate launch recipes/text.py --config recipes/configs/shakespeare.yaml [--any_argument value]

With `--backbone` it starts from a pretrained model, with its tokenizer. If it is interrupted, the same command resumes it
from the last complete checkpoint. It writes to `output_dir`: the model and its tokenizer (load them with `AutoModel` and
`AutoTokenizer`), metrics.json, curve.png, sample.txt, and the steps of the sample as sample.gif and trajectory.png.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import rmtree
from typing import Any

if __name__ == "__main__":  # imports start at the root of the repository: `datasets` in this folder is another package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

from gm_discrete import EditPath, GMConfig, GMModel, MaskedPath, MixturePath, UniformPath
from gm_discrete.data import (
    byte_level_bpe,
    character_tokenizer,
    load_tokenizer,
    pack,
    sentencepiece_tokenizer,
    smiles_tokenizer,
    truncate,
)
from gm_discrete.evaluation import count_bytes, count_characters
from gm_discrete.paths import Path as ProbabilityPath
from gm_discrete.pictures import animate, plot_trajectory
from gm_discrete.training import GMTrainer, last_complete_checkpoint, published
from recipes.common import (
    check_run,
    model_card,
    parse_arguments,
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
from recipes.datasets import download_gcide, load_text
from recipes.options import check_sampling, json_dict, json_option, samples_may_be_longer
from recipes.pretrained import (
    BackboneArguments,
    backbone_config,
    backbone_tokenizer,
    check_backbone,
    is_gm_model,
    load_backbone,
    publish,
    with_adapter,
)

Tokenizer = Any
"""A `PreTrainedTokenizerBase`, whose annotations allow ids to be strings and lists."""

TOKENIZER_TEXTS = 100_000
"""Number of texts of a stream from which a tokenizer is trained."""

COUNTED_SEQUENCES = 10_000
"""Number of sequences in which the tokens of the unigram path, or the lengths of the prior of edits, are counted."""

FEWEST, FEWEST_HELD_OUT = 8, 2
"""The least numbers of sequences for training, and of held-out ones, of which a standard error needs two."""

UNKNOWN_SHARE = 0.05
"""The greatest share of unknown tokens: of ordinary text in the alphabet of other text far fewer are unknown."""

STREAM_SEQUENCES = 1000
"""Sequences of a stream that are counted before training."""

MORE_HELD_OUT = "give a larger --validation_size, such as 0.2, or a smaller --length"

SHARED = "_tokenizer"
"""Folder of the tokenizer that all processes load, until the finished model has it."""

DISPLAY = {"prompt", "sample_length", "num_steps", "num_eval_samples", "max_eval_sequences", "download", "merge"}
"""Arguments that the weights do not depend on: they may change when a run is resumed."""


@dataclass
class TextArguments(BackboneArguments):
    """Arguments for data, path, model and sampling. All others are those of `TrainingArguments`."""

    data: str = field(
        default="shakespeare",
        metadata={
            "help": "shakespeare, shakespeare_lines, gcide, moses, a txt, csv, json, parquet or smi file, a folder or hub id"
        },
    )
    license: str | None = field(default=None, metadata={"help": "of the model, for its card, such as apache-2.0"})
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    download: bool = field(
        default=False, metadata={"help": "download gcide first, with apt-get (no root rights needed)"}
    )
    text_column: str = field(default="text", metadata={"help": "column of the data set that holds the text"})
    sample_by: str | None = field(
        default=None,
        metadata={"help": "a text of a .txt file: document, line or paragraph; default: document if packed, else line"},
    )
    encoding: str | None = field(
        default=None, metadata={"help": "of local files; by default it is found from their content"}
    )
    streaming: bool = field(default=False, metadata={"help": "read the data while training"})
    validation_size: float | None = field(default=None, metadata={"help": "fraction or number of held-out rows"})
    tokenizer: str = field(
        default="characters",
        metadata={"help": "characters, bpe, sentencepiece, smiles, a folder or hub id; with backbone: always its own"},
    )
    alphabet: str | None = field(
        default=None, metadata={"help": "characters of the vocabulary; default: those of the data"}
    )
    tokenizer_size: int = field(default=8192, metadata={"help": "vocabulary size of a bpe or sentencepiece tokenizer"})
    length: int = field(default=256, metadata={"help": "tokens per sequence"})
    packed: bool = field(
        default=True, metadata={"help": "cut the concatenated texts into blocks; false: one text per sequence"}
    )
    separate: bool = field(
        default=False,
        metadata={"help": "if packed: the texts of a block are documents that do not attend to each other"},
    )
    pad_to_length: bool = field(
        default=False,
        metadata={"help": "with packed=false: train on the padding too, so that the model learns lengths"},
    )
    add_eos: bool = field(default=True, metadata={"help": "append the end-of-text token to every text"})
    max_eval_sequences: int = field(default=512, metadata={"help": "held-out sequences that are scored"})

    path: str = field(
        default="masked",
        metadata={
            "help": "prior: masked, uniform, or unigram (token frequencies); edits: strings of any length, which needs "
            "packed=false"
        },
    )
    rates: str = field(default="reversal", metadata={"help": "reversal or mixture, if the path is uniform or unigram"})
    prior: str = field(
        default="empty",
        metadata={"help": "of edits: empty, or uniform: random tokens, as many as the training texts have"},
    )
    alignment: str = field(default="optimal", metadata={"help": "of edits with prior uniform: optimal, random or left"})
    schedule: str = field(default='{"type": "linear"}', metadata={"help": "name or JSON of a schedule"})
    hidden_size: int = field(default=512, metadata={"help": "width of a new transformer"})
    num_hidden_layers: int = field(default=8, metadata={"help": "layers of a new transformer"})
    num_attention_heads: int = field(default=8, metadata={"help": "attention heads per layer of a new transformer"})
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

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
    num_eval_samples: int = field(default=4, metadata={"help": "draws of the bound per held-out sequence"})

    prompt: str = field(
        default="",
        metadata={"help": "text that the sample contains at its start; _ is a token to fill, of edits any number"},
    )
    sample_length: int | None = field(
        default=None, metadata={"help": "tokens of the sample, of edits the most; default: length"}
    )
    num_steps: int = field(default=128, metadata={"help": "sampling steps"})


OF_NEW = ("tokenizer", "alphabet", "tokenizer_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Arguments without effect on a pretrained model."""
OF_PATH = ("rates", "prior", "alignment", "schedule")
"""Arguments without effect on a `GMModel`, whose path has them."""


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((TextArguments, TrainingArguments), argv)
    given = {word.partition("=")[0] for word in (sys.argv if argv is None else argv)}
    if options.prompt and "--data" in given and "--prompt" not in given:
        print_once(
            training, f"the config's prompt {options.prompt!r} is left out, as --data is given; --prompt gives one"
        )
        options.prompt = ""
    with running(training):
        return run(options, training)


def run(options: TextArguments, training: TrainingArguments) -> dict[str, float]:
    """Trains, scores, samples and draws."""
    output = Path(str(training.output_dir))
    trainer = build_trainer(options, training)
    train(trainer)
    metrics = scored(trainer)
    publish(options, trainer)
    model_card(trainer, options.data, options.backbone, license=options.license)
    if training.should_save:
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "token", output / "curve.png")
        tokenizer: Tokenizer = trainer.processing_class
        with published(output) as draft:
            text = write_sample(options, tokenizer, GMModel.from_pretrained(output).to(training.device), draft)
        rmtree(output / SHARED)
        print_once(training, f"\nprompt: {options.prompt!r}\n{'-' * 64}\n{text}\n{'-' * 64}")
    print_once(
        training,
        f"\nheld-out bound: {metrics['bits_per_character']:.3f} ± {metrics['bits_per_character_stderr']:.3f} bits per "
        f"character, {metrics['bits_per_byte']:.3f} ± {metrics['bits_per_byte_stderr']:.3f} per byte ({metrics['dynamics']} "
        f"dynamics, {metrics['sequences']} sequences of {options.length} tokens)\n"
        f"written to {output}/: model, metrics.json, curve.png, sample.txt, sample.gif, trajectory.png",
    )
    return metrics


def build_trainer(options: TextArguments, training: TrainingArguments) -> GMTrainer:
    """Builds tokenizer, data and model, and the trainer that holds them."""
    is_gm = options.backbone is not None and is_gm_model(options.backbone)
    check_backbone(options, {name: getattr(TextArguments, name) for name in OF_NEW + OF_PATH * is_gm})
    set_seed(training.seed)
    output = Path(str(training.output_dir))
    shared = output / SHARED
    with training.main_process_first(desc="tokenizer and data"):
        if options.download and options.data == "gcide" and training.process_index == 0:
            download_gcide()
        if training.local_process_index == 0:
            check_run(output, weight_settings(options, training, DISPLAY))
            with published(shared) as draft:
                build_tokenizer(options, output).save_pretrained(draft)
        tokenizer = AutoTokenizer.from_pretrained(shared)
        train_rows, validation = (tokenized(options, tokenizer, split) for split in ("train", "validation"))
    print_once(training, "\n".join(described(options, tokenizer, train_rows, validation)))
    build = partial(build_model, tokenizer=tokenizer, rows=train_rows)
    model = build(options)
    with samples_may_be_longer():
        check_sampling(model, **sampling(options, tokenizer))
    model = with_adapter(options, training, model, tokenizer, build)
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} symbols")

    return GMTrainer(
        model,
        training,
        time_sampler=time_sampler(options.times, options.times_mean, options.times_std),
        train_dataset=train_rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        **trainer_options(options, training),
    )


def scored(trainer: GMTrainer) -> dict[str, Any]:
    """The likelihood bound of the held-out part, per character, byte and token."""
    bound = trainer.bound()
    held_out: Any = trainer.eval_dataset
    metrics: dict[str, Any] = {}
    for unit, count in (("character", count_characters), ("byte", count_bytes)):
        counts = [count(trainer.processing_class, torch.tensor([row["input_ids"]]))[0] for row in held_out]  # pyright: ignore[reportArgumentType]
        per_unit = replace(bound, nats=bound.nats.cpu(), num_tokens=torch.tensor(counts))
        metrics |= {f"bits_per_{unit}": per_unit.bits_per_token, f"bits_per_{unit}_stderr": per_unit.stderr}
    return metrics | {
        "bits_per_token": bound.bits_per_token,
        "perplexity": bound.perplexity,
        "sequences": len(bound.nats),
        "dynamics": bound.kind,
    }


def build_tokenizer(options: TextArguments, output: Path) -> Tokenizer:
    """Loads the tokenizer of the run that is resumed, or of the backbone, or builds one."""
    if saved := last_complete_checkpoint(output):
        return AutoTokenizer.from_pretrained(saved)
    if options.backbone is not None:
        return backbone_tokenizer(options.backbone)
    if options.tokenizer == "characters" and options.alphabet:
        return character_tokenizer(alphabet=options.alphabet)
    if options.tokenizer not in ("characters", "bpe", "sentencepiece", "smiles"):
        try:
            return load_tokenizer(options.tokenizer)
        except OSError as error:
            choices = "characters, bpe, sentencepiece, smiles, a folder, or a hub id"
            raise ValueError(f"tokenizer={options.tokenizer!r} is not available; give {choices}") from error
    rows: Any = load(options, "train")
    texts = (row["text"] for row in rows)
    texts = islice(texts, TOKENIZER_TEXTS) if options.streaming else texts
    if options.tokenizer == "characters":
        return character_tokenizer(texts)
    if options.tokenizer == "bpe":
        return byte_level_bpe(texts, options.tokenizer_size)
    if options.tokenizer == "smiles":
        return smiles_tokenizer(texts)
    return sentencepiece_tokenizer(texts, options.tokenizer_size)


def load(options: TextArguments, split: str) -> Dataset | IterableDataset:
    """Loads one split, with the column `text`."""
    size = options.validation_size
    return load_text(
        options.data,
        split,
        name=options.data_config,
        text_column=options.text_column,
        streaming=options.streaming,
        sample_by=options.sample_by or ("document" if options.packed else "line"),
        encoding=options.encoding,
        validation_size=int(size) if size and size >= 1 else size,
    )


def tokenized(options: TextArguments, tokenizer: Tokenizer, split: str) -> Dataset | IterableDataset:
    """Tokenises one split; the validation split is reduced to `max_eval_sequences`, evenly spaced (first, if a stream)."""
    if options.packed and options.pad_to_length:
        raise ValueError("pad_to_length=True needs packed=False: packed sequences have no padding")
    if options.path == "edits" and (options.packed or options.pad_to_length):
        raise ValueError(
            "path='edits' needs packed=False and pad_to_length=False: each text is a string, and its length is learned"
        )
    if options.separate and not options.packed:
        raise ValueError("separate=True needs packed=True: else each sequence is one text")
    packing = partial(pack, separate=options.separate)
    to_sequences = packing if options.packed else partial(truncate, pad_to_length=options.pad_to_length)
    try:
        rows = to_sequences(load(options, split), tokenizer, options.length, add_eos=options.add_eos)
    except ValueError as error:
        if split == "validation":
            raise ValueError(f"the held-out part is too small: {MORE_HELD_OUT} ({error})") from error
        raise
    if split == "train":
        return rows if isinstance(rows, Dataset) else rows.shuffle(seed=0, buffer_size=10_000)
    if not isinstance(rows, Dataset):
        return Dataset.from_list(list(rows.take(options.max_eval_sequences)))
    count = min(options.max_eval_sequences, len(rows))
    return rows.select([i * len(rows) // count for i in range(count)])


def described(
    options: TextArguments,
    tokenizer: Tokenizer,
    train_rows: Dataset | IterableDataset,
    validation: Dataset | IterableDataset,
) -> list[str]:
    """How many sequences and tokens there are for training and held out, a line each.

    Raises:
        ValueError: there are too few sequences, or too many tokens are unknown to the tokenizer.
    """
    lines, unk = [], tokenizer.unk_token_id
    unk = None if unk == tokenizer.eos_token_id else unk  # one token for both: text of bytes is never unknown
    for name, rows, fewest in (("training", train_rows, FEWEST), ("held out", validation, FEWEST_HELD_OUT)):
        part = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows.take(STREAM_SEQUENCES)))
        lengths, unknown = Counter(), 0
        for batch in part.with_format("numpy").iter(1000):
            found: Any = batch
            for row in found["input_ids"]:
                lengths[len(row)] += 1
                unknown += 0 if unk is None else int((row == unk).sum())
        tokens = sum(length * count for length, count in lengths.items())
        size = f"of {min(lengths)} to {max(lengths)}" if len(lengths) > 1 else f"of {max(lengths)}"
        stream = "a stream, whose first are " if part is not rows else ""
        lines.append(f"{name}: {stream}{len(part):,} sequences {size} tokens, {tokens:,} tokens in all")
        if len(part) < fewest:
            cure = "give more text or a smaller --length, or --sample_by line if each line is a text"
            cure = MORE_HELD_OUT if name == "held out" else cure
            raise ValueError(f"{lines[-1]}: at least {fewest} are needed; {cure}")
        if unknown > UNKNOWN_SHARE * tokens:
            raise ValueError(
                f"{name}: {unknown / tokens:.0%} of the tokens are unknown to tokenizer={options.tokenizer!r} (alphabet="
                f"{options.alphabet!r}); give an alphabet that holds the text, or leave it out to take that of the text"
            )
        if unknown:
            lines[-1] += f"; {unknown:,} are unknown to the tokenizer"
    return lines


def build_model(options: TextArguments, tokenizer: Tokenizer, rows: Dataset | IterableDataset) -> GMModel:
    """The model, pretrained or new."""
    if options.backbone is None:
        return GMModel(build_config(options, tokenizer, rows))
    model_options = json_dict("model_options", options.model_options)
    return load_backbone(options, tokenizer, build_path(options, tokenizer, rows), options.length, model_options)


def build_config(options: TextArguments, tokenizer: Tokenizer, rows: Dataset | IterableDataset) -> GMConfig:
    """The probability path and the transformer."""
    return GMConfig(
        path=build_path(options, tokenizer, rows),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        max_position_embeddings=options.length,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **json_dict("model_options", options.model_options),
    )


def build_path(options: TextArguments, tokenizer: Tokenizer, rows: Dataset | IterableDataset) -> ProbabilityPath:
    """The path from noise to text; priors are estimated from tokenised `rows`."""
    size, schedule = len(tokenizer), json_option("schedule", options.schedule)
    size = size if options.backbone is None else max(size, backbone_config(options.backbone).vocab_size)
    if options.path == "masked":
        return MaskedPath(size, tokenizer.mask_token_id, schedule)
    if options.path == "uniform":
        return UniformPath(size, schedule, options.rates, tokenizer.all_special_ids)
    if options.path == "unigram":
        counts = Counter(token for row in some(rows) for token in row["input_ids"])
        never = [token for token in (tokenizer.mask_token_id, tokenizer.pad_token_id) if token is not None]
        return MixturePath.unigram([counts[token] for token in range(size)], schedule, options.rates, never)
    if options.path == "edits":
        counts = Counter(len(row["input_ids"]) for row in some(rows)) if options.prior == "uniform" else None
        lengths = None if counts is None else [counts[length] for length in range(max(counts) + 1)]
        special = tokenizer.all_special_ids
        return EditPath(size, options.prior, lengths, options.alignment, schedule, tokenizer.pad_token_id, special)
    raise ValueError(f"path={options.path!r} must be masked, uniform, unigram or edits")


def some(rows: Dataset | IterableDataset) -> Iterable[Any]:
    """At most `COUNTED_SEQUENCES` of the rows, evenly spaced; of a stream the first."""
    if isinstance(rows, Dataset):
        rows = rows.select(range(0, len(rows), -(-len(rows) // COUNTED_SEQUENCES)))
    return islice(rows, COUNTED_SEQUENCES)


def sampling(options: TextArguments, tokenizer: Tokenizer) -> dict[str, Any]:
    """The arguments of `generate` for the sample.

    Raises:
        ValueError: the prompt holds characters that the tokenizer does not have, or leaves no token to fill.
    """
    length = options.sample_length or options.length
    settings: dict[str, Any] = {"num_steps": options.num_steps, "seed": 0}
    settings |= {"return_dict_in_generate": True, "output_trajectory": True}
    size = "max_length" if options.path == "edits" else "length"
    if not options.prompt:
        return settings | {size: length}
    ids = [
        tokenizer.mask_token_id if piece == "_" else token
        for piece in split_prompt(options.prompt)
        for token in (tokenizer(piece, add_special_tokens=False)["input_ids"] if piece != "_" else [0])
    ]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise ValueError(
            f"prompt={options.prompt!r} holds characters that are not in the tokenizer's vocabulary; give --prompt another, "
            "or --prompt '' for a sample without one"
        )
    if len(ids) >= length and tokenizer.mask_token_id not in ids:
        raise ValueError(
            f"prompt={options.prompt!r} has {len(ids)} tokens and leaves none of length={length} to fill; shorten it, raise "
            "sample_length, or mark tokens to fill with _"
        )
    new = {size: length} if options.path == "edits" else {"max_new_tokens": max(0, length - len(ids))}
    return settings | {"input_ids": torch.tensor([ids]), **new}


def write_sample(options: TextArguments, tokenizer: Tokenizer, model: GMModel, output: Path) -> str:
    """Generates from the prompt, and writes the text and pictures of its steps; returns the text."""
    with samples_may_be_longer():
        sample = model.generate(**sampling(options, tokenizer))
    text = tokenizer.decode(
        sample.sequences[0].cpu(), skip_special_tokens=options.pad_to_length or options.path == "edits"
    )
    (output / "sample.txt").write_text(text, encoding="utf-8")
    animate(sample.trajectory, tokenizer, output / "sample.gif")
    masks = model.config.mask_token_id if isinstance(model.path, MaskedPath) else None
    plot_trajectory(sample.trajectory, output / "trajectory.png", masks)
    return text


def split_prompt(prompt: str) -> list[str]:
    """Splits the prompt at every `_`, which become pieces of their own."""
    return [piece for part in prompt.split("_") for piece in ("_", part)][1:]


if __name__ == "__main__":
    run_script(main)
