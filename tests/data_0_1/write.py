"""Writes the model folders beside this file with gm_discrete 0.1: they are what a user of that version has on disk.

Run by hand, once, in a checkout of 0.1 (commit 3aee321): `PYTHONPATH=. python …/tests/data_0_1/write.py`. Each folder holds
a tiny model as `save_pretrained` wrote it, and `expected.safetensors`: inputs (`in.*`) and outputs (`out.*`) of its forward.
`tests/convert/test_saved_by_0_1.py` loads them with the code of today.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gm_discrete.landings import Bins
from gm_discrete.scalers import Categories, StandardScaler
from safetensors.torch import save_file
from torch import Tensor

import gm_discrete
from gm_discrete import (
    CosineSchedule,
    DetailedBalance,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    MetricPath,
    MixturePath,
    ProductPath,
    ReMDM,
    UniformPath,
)

HERE = Path(__file__).parent
SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
B, L, K = 2, 5, 6


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(config: GMConfig, seed: int) -> GMModel:
    """A model whose parameters are all drawn, those that start at zero too."""
    model = GMModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=rng(seed))
            seed += 1
    return model


def tokens(vocab_size: int, length: int = L) -> Tensor:
    return torch.randint(vocab_size, (B, length), generator=rng(1))


def models() -> Iterator[tuple[str, GMModel, dict[str, Any]]]:
    """(name of the folder, model, inputs of its forward)."""
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    classes = torch.tensor([1, -1])
    symbols = {"input_ids": tokens(K), "time": t}
    masked = randomised(GMConfig(path=MaskedPath(K, schedule=CosineSchedule()), max_position_embeddings=L, **SMALL), 10)
    masked.generation_config.update(
        sampler="adaptive", max_expected_changes=2, num_steps=7, temperature=0.9, guidance_scale=None, seed=3
    )
    yield "masked", masked, {"input_ids": tokens(K)}
    ordered = randomised(GMConfig(path=MaskedPath(K), max_position_embeddings=L, tie_word_embeddings=True, **SMALL), 15)
    ordered.generation_config.update(sampler="tau_leaping", order="confidence", order_temperature=0.5, num_steps=4)
    yield "masked_order", ordered, {"input_ids": tokens(K)}
    remask = randomised(GMConfig(path=MaskedPath(K), max_position_embeddings=L, num_classes=3, **SMALL), 20)
    remask.generation_config.update(corrector=ReMDM(0.1).to_dict(), num_steps=5, guidance_scale=2.0)
    yield "masked_corrector", remask, {"input_ids": tokens(K), "class_labels": classes}
    bounded = randomised(GMConfig(path=MaskedPath(K), max_position_embeddings=L, conv_kernel_size=3, **SMALL), 25)
    bounded.generation_config.update(sampler="entropy_bounded", entropy_bound=0.3, order="entropy", block_length=2)
    yield "masked_entropy", bounded, {"input_ids": tokens(K)}
    block = randomised(GMConfig(path=MaskedPath(K), block_size=2, max_position_embeddings=6, **SMALL), 30)
    block.generation_config.update(use_cache=True, num_steps=4)
    yield "block", block, {"input_ids": tokens(K, 6)}
    uniform = randomised(GMConfig(path=UniformPath(K, rates="reversal", special_token_ids=(5,)), **SMALL), 40)
    uniform.generation_config.update(
        sampler="uniformization", tolerance=0.01, corrector=DetailedBalance(2, 0.5).to_dict(), grid="quadratic"
    )
    yield "uniform", uniform, symbols
    prior = randomised(GMConfig(path=MixturePath(K, [0.1, 0.2, 0.1, 0.2, 0.2, 0.2], rates="mixture"), **SMALL), 45)
    prior.generation_config.update(grid=[0.0, 0.25, 0.5, 1.0])
    yield "prior", prior, symbols
    points = torch.randn(K, 3, generator=rng(2))
    metric = randomised(GMConfig(path=MetricPath(K, embeddings=points, normalize=True, c=0.7, a=1.5), **SMALL), 50)
    yield "metric_embeddings", metric, symbols
    apart = torch.cdist(points, points).mul(64).round().div(64)
    yield "metric_distance", randomised(GMConfig(path=MetricPath(K, distance=apart), **SMALL), 60), symbols
    image = GMConfig(
        path=GaussianPath({"flow": 0.5, "jump": 0.5}, num_channels=1, bins=Bins(-1.2, 1.2, 8), data_std=0.5),
        image_shape=[1, 4, 4], patch_size=2, num_classes=3, num_frequencies=2, **SMALL,
    )  # fmt: skip
    pixels = torch.randn(B, 1, 4, 4, generator=rng(3))
    images = randomised(image, 70)
    images.generation_config.update(sampler="adaptive", tolerance=0.05, guidance_scale=1.5)
    yield "images", images, {"input_values": pixels, "time": t, "class_labels": classes}
    heads = GaussianPath({"flow": 0.5, "jump": 0.5}, num_channels=2, prediction="velocity", bins=Bins(-4, 4, 8))
    flow = randomised(GMConfig(path=heads, max_position_embeddings=4, num_frequencies=2, **SMALL), 80)
    flow.generation_config.update(sampler="heun", num_steps=6, generators={"flow": 1.0})
    yield "flow_and_landing", flow, {"input_values": torch.randn(B, 4, 2, generator=rng(4)), "time": t}
    product = ProductPath(
        carat=GaussianPath(num_channels=1, data_std=1.0),
        cut=MaskedPath(4),
        colour=UniformPath(3),
        independent_times=True,
    )
    fields = {"carat": {"codec": StandardScaler(1.5, 0.5)}, "cut": {"codec": Categories(["a", "b", "c"])}}
    table = randomised(GMConfig(path=product, fields=fields, num_frequencies=2, **SMALL), 90)
    state = {
        "carat": torch.randn(B, 1, 1, generator=rng(5)),
        "cut": tokens(4, 1),
        "colour": tokens(3, 1),
    }
    yield (
        "table",
        table,
        {"fields": state, "time": torch.tensor([[0.2, 0.5, 0.9], [0.7, 0.1, 0.4]], dtype=torch.float64)},
    )
    dit = GMConfig(path=MaskedPath(K), backbone="dit", condition_size=4, max_position_embeddings=L, **SMALL)
    yield "dit", randomised(dit, 100), {"input_ids": tokens(K), "time": t}


def flat(prefix: str, value: Any) -> dict[str, Tensor]:
    """Tensors by dotted name, of nested dicts."""
    if isinstance(value, Mapping):
        return {name: tensor for key, each in value.items() for name, tensor in flat(f"{prefix}.{key}", each).items()}
    return {} if value is None else {prefix: value.contiguous()}


def main() -> None:
    assert gm_discrete.__version__ == "0.1.0"
    for name, model, inputs in models():
        folder = HERE / name
        model.generation_config.validate()
        model.save_pretrained(folder)
        with torch.no_grad():
            output = model(**inputs)
        found = {part: output[part] for part in ("logits", "velocity") if output.get(part) is not None}
        save_file({**flat("in", inputs), **flat("out", found)}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
