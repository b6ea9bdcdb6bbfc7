"""`gm-discrete generate`: samples as text, as rows of a table, or as a picture."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_discrete.command.models import add_model, load_config, load_model, load_tokenizer, write_text
from gm_discrete.command.texts import positive

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from gm_discrete.data.scalers import Codec
    from gm_discrete.models import GMConfig, GMModel

SHOWN = 0.05
"""Seconds between two states with --show: small models would be done before anything is seen."""
CELL = "·"
"""What --show writes for a token that is not filled yet."""
PAGE = "the page how-to/generate of the documentation has the code"
GIVEN = '--options \'{"given": {"COLUMN": VALUE}}\''
FOR_TEXT = ("prompt", "prompt_file", "chat", "max_new_tokens", "show")
"""Options that other samples than text do not take."""
OWN = {
    "batch_size": "num-samples", "num_return_sequences": "num-samples", "input_ids": "prompt", "streamer": "show",
    **{name: name.replace("_", "-") for name in (
        "length", "max_new_tokens", "class_labels", "num_steps", "sampler", "temperature", "top_p", "seed",
    )},
}  # fmt: skip
"""Arguments of `generate` → the option of the command that sets them."""
NO_USE = ("return_dict_in_generate", "output_trajectory")
"""Arguments of `generate` whose results the command does not write."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Generate text (to the terminal), rows of a table (CSV) or images (PNG). Options that are not given are those of "
        "generation_config.json."
    )
    add_model(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", help="text to go on from; every mask token of the tokenizer in it, such as [MASK], is filled"
    )
    prompt.add_argument("--prompt-file", metavar="FILE", help="file that holds the prompt; - reads standard input")
    prompt.add_argument(
        "--chat", metavar="TEXT",
        help="message of a user, in the chat template of the tokenizer; the answer is printed, up to its end-of-text token",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int,
        help="tokens after the prompt; by default up to the length in training, and none if the prompt holds mask tokens",
    )  # fmt: skip
    parser.add_argument("--length", type=positive, help="tokens of a sample without prompt; by default as in training")
    parser.add_argument("--num-steps", type=positive, help="sampling steps")
    parser.add_argument(
        "--sampler", type=name_or_json, help='name, or JSON such as \'{"type": "adaptive", "tolerance": 0.01}\''
    )
    parser.add_argument("--temperature", type=float, help="of the posterior; 0 takes the most likely token")
    parser.add_argument("--top-p", type=float, help="probability that is kept of the posterior")
    parser.add_argument("--seed", type=int, help="of all noise; by default every call gives other samples")
    parser.add_argument("--num-samples", type=positive, default=1, help="number of samples")
    parser.add_argument(
        "--class-labels", type=int, nargs="+", metavar="CLASS", help="classes: one, or one for each sample"
    )
    parser.add_argument(
        "--options",
        type=json_object,
        default={},
        metavar="JSON",
        help="further arguments of GMModel.generate, which have no option here",
    )
    parser.add_argument(
        "--show", type=float, nargs="?", const=SHOWN, metavar="SECONDS",
        help=f"watch the text appear, if the output is a terminal: seconds for each step, {SHOWN} if none are given",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="file to write to; images need one")


def name_or_json(text: str) -> Any:
    """A name, or a JSON object."""
    return text if re.fullmatch(r"\w+", text) else json_object(text)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error}); in a shell put it in '…'") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object, such as '{{\"top_k\": 50}}'")
    return found


def run(options: argparse.Namespace) -> None:
    config = load_config(options.model)
    kind, name = kind_of(config, options.model), options.model
    suffix = None if options.output is None else Path(options.output).suffix.lower()
    if kind == "image" and suffix != ".png":
        raise ValueError(f"--output {options.output!r} must be a file that ends in .png: {name} generates images")
    if kind == "table" and suffix not in (None, ".csv"):
        raise ValueError(
            f"--output {options.output!r} must be a file that ends in .csv: {name} generates rows of a table"
        )
    if kind != "text" and (wrong := [option for option in FOR_TEXT if getattr(options, option) is not None]):
        cure = f"; known cells are given as {GIVEN}" if kind == "table" else ""
        raise ValueError(f"--{wrong[0].replace('_', '-')} is for models of text, and {name} generates a {kind}{cure}")
    for name in options.options:
        if name in OWN:
            raise ValueError(f"--options has {name!r}; give --{OWN[name]}")
        if name in NO_USE:
            raise ValueError(f"--options has {name!r}, which the command does not write; {PAGE}")
    if options.output is not None and not Path(options.output).absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {options.output!r} is in a folder that does not exist")
    if kind == "text":
        generate_text(options, config)
    elif kind == "table":
        generate_table(options)
    else:
        generate_images(options)


def kind_of(config: GMConfig, name: str) -> str:
    """What a model generates: "text", "table" or "image".

    Args:
        name: of the model, for errors.

    Raises:
        ValueError: something else.
    """
    path, codecs = config.build_path(), config.codecs
    if config.image_shape is not None:
        return "image"
    if "" in path.fields and path.is_discrete:
        return "text"
    single = all(field.length == 1 for field in config.state_fields.values())
    if codecs and single:
        return "table"
    raise ValueError(f"{name} has a {type(path).__name__}, whose samples have no form as text, table or image; {PAGE}")


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `generate` that were given, except for those of prompts."""
    names = ("num_steps", "sampler", "temperature", "top_p", "seed")
    found = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if labels := options.class_labels:
        if len(labels) not in (1, options.num_samples):
            raise ValueError(
                f"--class-labels has {len(labels)} classes; give one, or one for each of {options.num_samples} samples"
            )
        found["class_labels"] = labels * (options.num_samples // len(labels))
    plain = {"return_dict_in_generate": False, "output_trajectory": False}  # whatever the generation config says
    return {**found, **options.options, **plain}


def generate_text(options: argparse.Namespace, config: GMConfig) -> None:
    import torch

    tokenizer: Any = load_tokenizer(options.model)
    call, prompt = arguments(options), prompt_of(options, tokenizer)
    strings = config.build_path().strings is not None
    if prompt is not None:
        ids = torch.tensor([prompt], dtype=torch.long)
        call["input_ids"], call["num_return_sequences"] = ids, options.num_samples
        if options.max_new_tokens is not None:
            call["max_new_tokens"] = options.max_new_tokens
        elif tokenizer.mask_token_id not in ids and not strings and not {"max_new_tokens", "max_length"} & call.keys():
            call["max_new_tokens"] = max(0, config.max_position_embeddings - ids.shape[1])
        if options.length is not None:
            raise ValueError("--length is for samples without a prompt; give --max-new-tokens")
    else:
        if options.max_new_tokens is not None:
            raise ValueError("--max-new-tokens is for samples with a prompt; give --length")
        call["batch_size"] = options.num_samples
        if options.length is not None:
            call["max_length" if strings else "length"] = options.length
    shown = options.show is not None and options.output is None and sys.stdout.isatty()
    if options.show is not None and options.num_samples > 1:
        raise ValueError(f"--show is for one sample, and --num-samples is {options.num_samples}")
    if shown:
        from transformers import TextDiffusionStreamer

        cells: Any = WithCells(tokenizer)
        call["streamer"] = TextDiffusionStreamer(cells, sleep_time=options.show, skip_special_tokens=strings)
    model = load_model(options.model, options.device)
    if prompt is not None:
        call["input_ids"] = call["input_ids"].to(model.device)
    samples = model.generate(**call)
    if shown:  # the streamer has printed it
        return
    if options.chat is not None and prompt is not None:
        ends = ends_of(model, tokenizer)
        answers = [takewhile(lambda token: token not in ends, sample[len(prompt) :]) for sample in samples.tolist()]
        texts = [tokenizer.decode(list(answer), skip_special_tokens=True) for answer in answers]
    else:
        texts = [tokenizer.decode(sample, skip_special_tokens=strings) for sample in samples.cpu()]
    separator = "\n" + "-" * 64 + "\n"
    write_text(separator.join(texts) + "\n", options.output)


class WithCells:
    """Decodes as a tokenizer, with one cell for each mask token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: Tensor, **options: bool) -> str:
        text, mask = str(self.tokenizer.decode(ids, **options)), self.tokenizer.mask_token
        return text.replace(str(mask), CELL) if mask else text


def prompt_of(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """The tokens of the prompt or of the chat; `None` if there is neither.

    Raises:
        ValueError: the tokenizer does not have the characters of the prompt, or no chat template.
    """
    from gm_discrete.data import prompt_ids
    from gm_discrete.data.tokenizers import check_known

    if options.chat is not None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"--chat needs a chat template, and the tokenizer of {options.model} has none; give --prompt"
            )
        text, ids = options.chat, prompt_ids(tokenizer, [{"role": "user", "content": options.chat}])
    elif (text := text_of(options)) is not None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # as `pack` makes the data of a training
    else:
        return None
    check_known(tokenizer, text, ids, f"prompt={text!r}")
    return ids


def ends_of(model: GMModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text."""
    own: Any = model.generation_config.eos_token_id
    own = tokenizer.eos_token_id if own is None else own
    return set() if own is None else {own} if isinstance(own, int) else set(own)


def text_of(options: argparse.Namespace) -> str | None:
    """The prompt, as given, from a file, or from standard input."""
    if options.prompt_file is None:
        return options.prompt
    if options.prompt_file == "-":
        return sys.stdin.read()
    try:
        return Path(options.prompt_file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file {options.prompt_file!r} is no text in UTF-8: {error}") from error


def generate_table(options: argparse.Namespace) -> None:
    from gm_discrete.data import decode_rows

    model = load_model(options.model, options.device)
    if options.length is not None:
        raise ValueError("--length is for models of text; --num-samples gives the number of rows")
    call = arguments(options)
    if isinstance(given := call.get("given"), dict):
        call["given"] = cells_of_rows(given, model.config.codecs, options.num_samples)
    sample = model.generate(batch_size=options.num_samples, **call)
    columns = decode_rows(sample, model.config.codecs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(text.getvalue(), options.output)


def cells_of_rows(given: dict[str, Any], codecs: Mapping[str, Codec], count: int) -> dict[str, Any]:
    """The given cells, for every row if a field has one; a column whose cells are given is not missing in any row.

    Args:
        codecs: of the fields, by name.

    Raises:
        ValueError: a field has more cells, but not one for each row.
    """
    from gm_discrete.data.fields import PRESENCE

    companions = [name for name, codec in codecs.items() if [*getattr(codec, "names", ())] == [*PRESENCE]]
    found = {name: "present" for name in companions if name.removesuffix("_missing") in given} | given
    for name, cells in found.items():
        cells = cells if isinstance(cells, list) else [cells]
        if len(cells) not in (1, count):
            raise ValueError(
                f"given[{name!r}] has {len(cells)} cells; give one, or one for each row of --num-samples {count}"
            )
        found[name] = cells * (count // len(cells))
    return found


def generate_images(options: argparse.Namespace) -> None:
    """Writes the images of a batch in one row, with a pixel between two."""
    from PIL import Image
    from torch.nn.functional import pad

    from gm_discrete.data import to_uint8

    model = load_model(options.model, options.device)
    images = to_uint8(sample_images(model, options), levels=levels_of(model))
    row = pad(images, (0, 1)).permute(2, 0, 3, 1).flatten(1, 2)[:, :-1]  # [H, B (W + 1) − 1, C]
    Image.fromarray((row if row.shape[2] == 3 else row[:, :, 0]).numpy()).save(options.output)


def sample_images(model: GMModel, options: argparse.Namespace) -> Any:
    """Samples [B, C, H, W] on the CPU."""
    return model.generate(batch_size=options.num_samples, **arguments(options)).cpu()


def levels_of(model: GMModel) -> int | None:
    """The levels of a discrete pixel: its symbols but for the mask."""
    path: Any = model.path
    if not path.is_discrete:
        return None
    return path.vocab_size - (getattr(path, "mask_token_id", None) is not None)
