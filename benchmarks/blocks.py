"""Time of block-causal generation with and without its key/value cache.

    python benchmarks/blocks.py --threads 2 --output blocks.json

One network with random weights generates `--lengths` new symbols in blocks of `--block-size`, `--steps` steps a block, with
`Blocks(cache="exact")` and without cache, taking turns; the median of the rounds is reported. That both give the same
symbols is checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from measure import environment, interleaved, markdown, medians, network, network_arguments, parse, report

from gm_discrete import Blocks, MaskedPath


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network_arguments(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024], help="new symbols")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="of a block")
    args = parse(parser, argv, lengths=[16, 32], block_size=8, steps=4)
    longest = argparse.Namespace(**vars(args) | {"length": max(args.lengths)})
    model = network(MaskedPath(args.vocab_size), longest, block_size=args.block_size)
    blocks = {"uncached": Blocks(args.block_size), "cached": Blocks(args.block_size, cache="exact")}
    results = []
    for length in args.lengths:
        options = {"batch_size": args.batch_size, "length": length, "num_steps": args.steps, "seed": args.seed}
        sides = {
            side: lambda options=options, blocks=blocks: model.generate(**options, blocks=blocks)
            for side, blocks in blocks.items()
        }
        same = float((sides["uncached"]() == sides["cached"]()).double().mean())  # and both are warm
        rounds = interleaved(sides, args.pairs, args.device)
        results.append({"length": length, "same": same, "rounds": rounds, **medians(rounds)})
    table = markdown(
        [
            {
                "new symbols": str(result["length"]),
                "without cache": f"{result['uncached']:.2f} s",
                "with cache": f"{result['cached']:.2f} s",
                "speedup": f"{result['uncached'] / result['cached']:.1f}×",
                "same symbols": f"{result['same']:.2%}",
            }
            for result in results
        ]
    )
    where = environment(args.device, __file__, argv)
    report(
        {"benchmark": "blocks", "environment": where, "settings": vars(args), "results": results}, [table], args.output
    )


if __name__ == "__main__":
    main()
