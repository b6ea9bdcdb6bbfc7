from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gm_discrete import Bins, GaussianPath, GMConfig, GMModel, MaskedPath, UniformPath
from recipes.datasets import load_images

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATHS = {
    "masked": (MaskedPath(5), 2),
    "uniform": (UniformPath(4), 0),
    "both": (GaussianPath({"flow": 0.5, "jump": 0.5}, bins=Bins(-1, 1, 4)), 2),
    "jump": (GaussianPath({"jump": 1.0}, bins=Bins(-1, 1, 4)), 0),
}
"""Path and number of classes of each model."""
SCORES = ("frechet", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """benchmarks/images.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(torch, "set_num_threads", lambda _: None)
        spec = importlib.util.spec_from_file_location("images_benchmark", BENCHMARKS / "images.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and noise of two classes, dark and bright: 16 images to train on and 12 held out."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 8), ("validation", 6)):
        for name, (low, high) in {"dark": (0, 160), "bright": (96, 256)}.items():
            (root / "data" / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(low, high, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / name / f"{i}.png")
    for name, (path, classes) in PATHS.items():
        save(root / name, path, classes)
    return root


def save(folder: Path, path: Any, classes: int, size: int = 8) -> None:
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
    GMModel(GMConfig(path=path, image_shape=[1, size, size], num_classes=classes, **tiny)).save_pretrained(folder)


def run(benchmark: ModuleType, root: Path, models: str, *arguments: str) -> dict[str, Any]:
    folders = [str(root / name) for name in models.split(",")]
    places = ["--data", str(root / "data"), "--figures", str(root / "figures"), "--output", str(root / "scores.json")]
    options = json.dumps({"cache_dir": str(root / "cache")})
    sizes = ["--quick", "--num-samples", "8", "--device", "cpu", "--threads", "1", "--data-options", options]
    benchmark.main(["--model", *folders, *places, *sizes, *arguments])
    return json.loads((root / "scores.json").read_text(encoding="utf-8"))


def figures(record: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the times."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in record["samples"]]


@pytest.mark.slow
def test_images_benchmark__a_row_per_model_sampler_and_calls(
    benchmark: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(benchmark, root, "masked,uniform,both,jump", "--samplers", "tau_leaping,heun,first_hitting,adaptive")
    floors, rows = record["samples"][:2], record["samples"][2:]
    assert [floor["model"] for floor in floors] == ["held-out images", "held-out images, 4 levels"]
    found = {(row["model"], row["sampler"], row["asked"]): row["network_calls"] for row in rows}
    steps = {(name, "tau_leaping", calls) for name in PATHS for calls in (2, 4)}
    heun = {(name, "heun", calls) for name in ("both", "jump") for calls in (2, 4)}
    adaptive = {(name, "adaptive", calls) for name in ("masked", "uniform") for calls in (2, 4)}
    own = {("masked", "first_hitting", None), ("both", "adaptive", None), ("jump", "adaptive", None)}
    assert found.keys() == steps | heun | adaptive | own
    for (name, sampler, asked), calls in found.items():
        if sampler == "tau_leaping" and name in ("both", "jump"):
            assert calls == asked
        elif sampler in ("tau_leaping", "heun"):
            assert calls <= asked
    assert found["masked", "first_hitting", None] == 64  # every pixel by itself
    assert found["both", "heun", 4] == 3  # a step of two calls and a last one
    for row in record["samples"]:
        assert all(math.isfinite(row[name]) for name in SCORES)
    assert all(row["seconds"] > 0 for row in rows)
    printed = capsys.readouterr()
    assert "FD-classifier" in printed.out
    assert len([line for line in printed.out.splitlines() if line.startswith("| ")]) == 2 + len(floors + rows) + 2 + 4
    assert "uniform without first_hitting: sampler='first_hitting'" in printed.err
    assert all(len(model["weights_sha256"]) == 64 for model in record["models"].values())


@pytest.mark.slow
def test_images_benchmark__bits_of_discrete_pixels_and_flows(benchmark: ModuleType, root: Path) -> None:
    """A head of zeros gives all four levels the same probability: log₂ 4 bits for any image."""
    record = run(benchmark, root, "masked,uniform,both,jump", "--samplers", "tau_leaping", "--calls", "2")
    masked, uniform, both, jump = record["bits"]
    assert masked["bits_per_dim"] == pytest.approx(2, abs=1e-5)
    assert masked["stderr"] < 1e-5
    assert (masked["levels"], masked["of"], masked["images"]) == (4, "bound, masked", 8)
    assert (uniform["levels"], uniform["of"]) == (4, "bound, reversal")
    assert abs(uniform["bits_per_dim"] - 2) < 5 * uniform["stderr"]
    assert (both["levels"], both["of"]) == (256, "flow")
    assert both["bits_per_dim"] > 0
    assert both["stderr"] > 0
    assert jump == {"model": "jump"}  # it has no likelihood


@pytest.mark.slow
def test_images_benchmark__figures_depend_on_the_seed_only(benchmark: ModuleType, root: Path) -> None:
    record, again, other = (run(benchmark, root, "both,masked", "--seed", seed) for seed in "778")
    assert (figures(record), record["bits"]) == (figures(again), again["bits"])
    assert figures(record)[:2] == figures(other)[:2]
    for row, another in zip(figures(record)[2:], figures(other)[2:], strict=True):
        # One step from the prior leads to the mean of the data, for any noise.
        assert (row != another) == (row["network_calls"] > 1)


@pytest.mark.slow
def test_images_benchmark__the_grid_has_a_column_per_class(benchmark: ModuleType, root: Path) -> None:
    run(benchmark, root, "masked,uniform", "--samplers", "tau_leaping")
    for name, columns in (("masked", 2), ("uniform", 8)):
        with Image.open(root / "figures" / f"images_{name}.png") as image:
            image.load()
            width, height = 9 * columns - 1, 9 * 8 - 1  # 8 pixels and a line
            assert image.width / image.height == width / height
            assert image.width % width == 0


class Brightness(nn.Module):
    """Twelve averages of pixels."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.rand(64, 12, generator=generator), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1) @ self.weight / 64


@pytest.mark.slow
def test_images_benchmark__other_features_and_reference(
    benchmark: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.scores, "efficientnet_lite0", lambda: Brightness().eval())
    record = run(benchmark, root, "jump", "--features", "efficientnet_lite0", "--against", "validation")
    assert record["reference"] == {"split": "validation", "images": 12, "distance": "FID-EffLite0"}
    assert [row["model"] for row in record["samples"]][:2] == ["training images", "jump"]
    train, held_out = (
        torch.stack(
            [
                torch.as_tensor(row["pixel_values"])
                for row in load_images(root / "data", split, cache_dir=root / "cache")
            ]
        )
        for split in ("train", "validation")
    )
    floor = benchmark.scores.evaluate_images(held_out, torch.stack(list(benchmark.some(train, 8))), Brightness().eval())
    assert {name: record["samples"][0][name] for name in SCORES} == pytest.approx(vars(floor))
    printed = capsys.readouterr().out
    assert "FID-EffLite0" in printed
    assert "FD-classifier" not in printed


def test_images_benchmark__classes_have_the_proportions_of_the_data(benchmark: ModuleType, root: Path) -> None:
    masked, uniform = (GMModel.from_pretrained(root / name) for name in ("masked", "uniform"))
    rows = [{"class_labels": label} for label in [1, 0, 0, 0] * 5]
    assert benchmark.wanted(masked, rows, 8).bincount().tolist() == [6, 2]
    assert benchmark.wanted(masked, [{}] * 20, 8).bincount().tolist() == [4, 4]
    assert len(benchmark.wanted(uniform, [{}] * 20, 8)) == 8


def test_images_benchmark__images_with_fewer_levels(benchmark: ModuleType) -> None:
    rows = [{"pixel_values": torch.arange(256, dtype=torch.uint8).view(1, 16, 16)}]
    assert torch.equal(benchmark.as_bytes(rows)[0], rows[0]["pixel_values"])
    assert benchmark.as_bytes(rows, 2).unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "tau_leaping,leapfrog"], "--samplers leapfrog: choose from tau_leaping"),
        (["--features", "vgg"], "invalid choice: 'vgg'"),
    ],
)
def test_images_benchmark__unknown_names_are_an_error(
    benchmark: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--model", "nowhere", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ("masked,uniform", ["--samplers", "heun"], "--samplers heun: none fits masked"),
        ("masked,masked", [], "names of the folders must differ"),
        ("masked,large", [], "images of one shape"),
        ("uniform", ["--guidance-scale", "2"], "guidance_scale=.* needs class_labels"),
        ("uniform", ["--calls", "0"], "num_steps=0"),
        ("uniform", ["--data-options", '{"label_column": null}'], "has no classes; take efficientnet_lite0"),
    ],
)
def test_images_benchmark__models_that_do_not_fit_are_an_error(
    benchmark: ModuleType, root: Path, models: str, arguments: list[str], message: str
) -> None:
    save(root / "large", MaskedPath(5), 0, size=16)
    with pytest.raises(ValueError, match=message):
        run(benchmark, root, models, *arguments)
