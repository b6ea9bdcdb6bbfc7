"""What a call of the library passes through: `python tests/trace.py` prints functions, files and calls of ours.

Four calls are traced: the loss of a masked model of two layers, `generate(length=32)` with the same model, by the default
number of steps and by one step, and the loss of a model of three fields.

    functions   different functions and methods of gm_discrete that run, properties and decorated ones included; each
                counts once however often it is called
    files       different files of gm_discrete that hold them
    calls       calls of these functions, repeated ones included

Functions of torch and transformers do not count, but those of gm_discrete that they call back do. Comprehensions and lambdas
count as part of the function that holds them. Each call has run once before, so that what is cached by then does not count.
`--list` prints every function.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from gm_discrete import GaussianPath, GMConfig, GMModel, MaskedPath, ProductPath, conditional_loss
from gm_discrete.generators.landings import Bins

PACKAGE = str(Path(sys.modules["gm_discrete"].__file__ or "").parent)
INNER = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>")


def traced(call: Callable[[], Any]) -> Counter[CodeType]:
    """Calls of each function of the library while `call` runs."""
    calls: Counter[CodeType] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in INNER:
            calls[code] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls


def masked_model() -> GMModel:
    """Two layers on twelve symbols."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GMModel(GMConfig(path=MaskedPath(12), max_position_embeddings=32, **small))


def three_field_model() -> GMModel:
    """Two numbers and a category, as a row of a table has them."""
    number = {"prediction": "belief", "bins": Bins(-3, 3, 16)}
    path = ProductPath(a=GaussianPath(**number), b=GaussianPath(**number), c=MaskedPath(5))
    return GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))


def calls() -> dict[str, Callable[[], Any]]:
    """What is traced, by name, each run once before so that caches are filled as in the second step of a training run."""
    masked, fields = masked_model(), three_field_model()
    z = torch.randint(11, (4, 32))
    row = {"a": torch.randn(4, 1, 1), "b": torch.randn(4, 1, 1), "c": torch.randint(4, (4, 1))}
    row = {name: value.clamp(-2, 2) if value.is_floating_point() else value for name, value in row.items()}
    found: dict[str, Callable[[], Any]] = {
        "conditional_loss, masked": lambda: conditional_loss(masked, z),
        "generate(length=32)": lambda: masked.generate(length=32),
        "generate(length=32, num_steps=1)": lambda: masked.generate(length=32, num_steps=1),
        "conditional_loss, three fields": lambda: conditional_loss(fields, row),
    }
    for call in found.values():
        call()
    return found


def main() -> None:
    print(f"{'':36}{'functions':>10}{'files':>7}{'calls':>7}")
    details = "--list" in sys.argv
    for name, call in calls().items():
        found = traced(call)
        files = {code.co_filename for code in found}
        print(f"{name:36}{len(found):10}{len(files):7}{sum(found.values()):7}")
        if details:
            for code, count in sorted(found.items(), key=lambda pair: (pair[0].co_filename, pair[0].co_firstlineno)):
                print(
                    f"    {Path(code.co_filename).relative_to(PACKAGE)}:{code.co_firstlineno} {code.co_qualname} {count}"
                )


if __name__ == "__main__":
    main()
