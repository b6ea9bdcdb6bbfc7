"""recipes/images.py: every config builds its model and trains; the files of a run; resuming."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel
from PIL import Image
from transformers import AutoModel, TrainingArguments

from gm_discrete import GaussianPath, GMModel, MaskedPath, UniformPath
from tests.helpers.recipe_configs import configs

CONFIGS = configs("images")
every_config = pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
SOURCES = {  # image shape, classes
    "mnist": ((1, 28, 28), 10), "fashion_mnist": ((1, 28, 28), 10), "emoji32": ((3, 32, 32), 9),
    "cifar10": ((3, 32, 32), 10), "benjamin-paine/imagenet-1k-32x32": ((3, 32, 32), 1000),
}  # fmt: skip
LEFT = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "metrics.json", "run.json", "curve.png",
    "samples.png", "samples.gif",
}  # fmt: skip


@pytest.fixture(autouse=True)
def coarse_likelihoods(image_recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of flows, in two steps in place of fifty: they take most of the time of a short run, and only need to be finite."""
    likelihood = image_recipe.flow_likelihood
    monkeypatch.setattr(
        image_recipe, "flow_likelihood", lambda *args, **options: likelihood(*args, **options | {"num_steps": 2})
    )


def parse(recipe: ModuleType, *argv: object) -> tuple[Any, Any]:
    return recipe.parse_arguments((recipe.ImageArguments, TrainingArguments), [str(part) for part in argv])


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


class Rows:
    """A stream of eight images of noise with named classes."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        pixels = torch.randint(256, (8, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        self.rows = [{"pixel_values": image.numpy(), "class_labels": i} for i, image in enumerate(pixels)]
        self.features = {"class_labels": ClassLabel(num_classes=classes)}

    def take(self, number: int) -> list[dict[str, Any]]:
        return self.rows[:number]


# ---- configs


@every_config
def test_image_recipe__a_config_describes_a_model_of_full_size(image_recipe: ModuleType, file: Path) -> None:
    options, training = parse(image_recipe, "--config", file, "--use_cpu", "true")
    shape, classes = SOURCES[options.data]
    config = image_recipe.build_config(options, Rows(shape, classes))
    assert tuple(config.image_shape) == shape
    assert config.num_classes == classes
    with torch.device("meta"):
        model = GMModel(config)
    count = sum(weight.numel() for weight in model.parameters())
    least, most = {
        "mnist": (1e6, 3e6), "fashion_mnist": (3e6, 12e6), "emoji32": (6e6, 20e6), "cifar10": (40e6, 80e6),
        "benjamin-paine/imagenet-1k-32x32": (120e6, 200e6),
    }[options.data]  # fmt: skip
    assert least < count < most
    positions = math.prod(shape[1:]) // options.patch_size**2
    assert config.max_position_embeddings == positions
    assert 16 <= positions <= 256  # more would not train in the time that the config gives itself
    path = config.build_path()
    if options.path == "gaussian":
        assert path.generators == json.loads(options.generators)
        assert -0.1 < path.data_mean < 0.1  # of bytes that are uniform
        assert path.data_std == pytest.approx(3**-0.5, abs=0.05)
        centers = path.bins.centers(torch.device("cpu"))  # from black to white
        assert (float(centers[0]), float(centers[-1]), len(centers)) == (
            pytest.approx(-1),
            pytest.approx(1),
            options.bins,
        )
    else:
        assert isinstance(path, {"masked": MaskedPath, "uniform": UniformPath}[options.path])
        assert path.vocab_size == options.levels + (options.path == "masked")
    assert training.output_dir == f"runs/{file.stem}"
    assert training.max_steps % training.eval_steps == training.max_steps % training.save_steps == 0


@pytest.mark.slow
@every_config
def test_image_recipe__a_config_trains_for_two_steps(
    image_recipe: ModuleType,
    tiny_images: list[str],
    image_folder: Path,
    packaged_images: Path,
    tmp_path: Path,
    file: Path,
) -> None:
    """With the real mnist, a few images in the format of the other packages, and a folder in place of the hub."""
    options, _ = parse(image_recipe, "--config", file, "--use_cpu", "true")
    stand_ins = ["--output_dir", str(tmp_path), "--patch_size", str(7 if options.data.endswith("mnist") else 8)]
    hub = options.data not in ("mnist", "fashion_mnist", "emoji32")
    if hub:
        stand_ins += ["--data", str(image_folder), "--image_column", "image", "--streaming", "false"]
    metrics = image_recipe.main(["--config", str(file), *tiny_images, *stand_ins])
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_file()} == LEFT
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert all(math.isfinite(value) for value in metrics.values())
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 2
    assert (tmp_path / "checkpoint-2" / "ema-0.safetensors").exists() == bool(options.ema_decay)
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, GMModel)
    assert model.config.num_classes == (2 if hub else SOURCES[options.data][1])
    symbols = options.path != "gaussian"
    assert ("bits_per_dim" in metrics, "levels" in metrics) == (symbols, symbols)
    if symbols:
        assert metrics["bits_per_dim"] == metrics["bits_per_token"] > 0
    else:
        generators = json.loads(options.generators)
        assert ("flow_bits_per_dim" in metrics) == ("flow" in generators)
        assert "loss" in metrics
        assert {"flow", "jump"} & metrics.keys() == generators.keys()
    size = {1: 28, 3: 32}[model.config.image_shape[0]]
    with Image.open(tmp_path / "samples.png") as grid, Image.open(tmp_path / "samples.gif") as animation:
        assert (grid.format, animation.format) == ("PNG", "GIF")
        columns = min(4, model.config.num_classes)
        assert grid.width % (columns * (size + 1) - 1) == 0  # whole pixels, enlarged
        assert 2 <= animation.n_frames <= 5  # at most the prior, three steps, and the end
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.format == "PNG"


def test_image_recipe__configs_exist() -> None:
    names = {file.stem for file in CONFIGS}
    assert {f"mnist_{kind}" for kind in ("masked", "uniform", "flow", "jump", "superposition")} <= names
    assert {"emoji32_superposition", "fashion_mnist_superposition", "cifar10_superposition"} <= names


def test_image_recipe__the_command_line_has_precedence(image_recipe: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "patch_size: 2\nhidden_size: 64\nmuon: true\nguidance_scale: 2.0\noutput_dir: from_yaml\n", encoding="utf-8"
    )
    options, training = parse(
        image_recipe, "--hidden_size", 128, "--config", config, "--muon", "false", "--use_cpu", "true"
    )
    assert (options.patch_size, options.hidden_size, options.muon, options.guidance_scale) == (2, 128, False, 2.0)
    assert training.output_dir == "from_yaml"
    config.write_text("pach_size: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown arguments: pach_size"):
        parse(image_recipe, "--config", config)


# ---- runs


@pytest.fixture(scope="module")
def arguments(tiny_images: list[str], image_folder: Path) -> list[str]:
    choice = {
        "data": image_folder, "image_size": 8, "patch_size": 4, "generators": '{"flow": 0.5, "jump": 0.5}', "bins": 8,
        "ema_decay": 0.9, "model_options": '{"hidden_dropout": 0.1}', "save_steps": 2, "seed": 5,
    }  # fmt: skip
    return [*tiny_images, *flags(choice)]


@pytest.mark.slow
def test_image_recipe__resumes_a_stopped_run(
    image_recipe: ModuleType, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps at once, and two and then four more: one and the same model."""
    constant = ["--lr_scheduler_type", "constant"]
    image_recipe.main([*arguments, *constant, *flags({"max_steps": 6, "output_dir": tmp_path / "unbroken"})])
    image_recipe.main([*arguments, *constant, *flags({"max_steps": 2, "output_dir": tmp_path / "resumed"})])
    capsys.readouterr()
    image_recipe.main([*arguments, *constant, *flags({"max_steps": 6, "output_dir": tmp_path / "resumed"})])
    assert f"resumed from {tmp_path / 'resumed' / 'checkpoint-2'}" in capsys.readouterr().out
    for file in ("model.safetensors", "checkpoint-6/model.safetensors", "samples.png"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes(), file
    with pytest.raises(ValueError, match=r"started with bins=8, now it is 16"):
        image_recipe.main([*arguments, *flags({"bins": 16, "output_dir": tmp_path / "resumed"})])
    shown = {"num_images": 2, "num_steps": 2, "guidance_scale": 2.0, "max_steps": 6, "output_dir": tmp_path / "resumed"}
    image_recipe.main([*arguments, *constant, *flags(shown)])  # arguments that the weights do not depend on may change
    assert (tmp_path / "resumed" / "samples.png").read_bytes() != (tmp_path / "unbroken" / "samples.png").read_bytes()


@pytest.mark.slow
def test_image_recipe__trains_without_classes_and_with_other_divergences(
    image_recipe: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    choice = {
        "by_class": False, "guidance_scale": 2.0, "divergence": '{"flow": "log_cosh"}',
        "loss_weights": '{"jump": 0.5}', "prediction": "data",
        "bins": 16, "schedule": '{"type": "trigonometric"}', "times": "logit_normal", "output_dir": tmp_path,
    }  # fmt: skip
    metrics = image_recipe.main([*arguments, *flags(choice)])
    config = GMModel.from_pretrained(tmp_path).config
    assert config.num_classes == 0
    assert config.divergence == {"flow": "log_cosh", "jump": "generalized_kl"}
    assert config.loss_weights == {"jump": 0.5}
    assert metrics["loss"] == pytest.approx(metrics["flow"] + 0.5 * metrics["jump"])
    path: Any = config.build_path()
    assert (path.prediction, path.bins.low, path.bins.high) == ("data", -4, 4)
    assert path.schedule.type_name == "trigonometric"


@pytest.mark.slow
def test_image_recipe__trains_on_a_stream(image_recipe: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    source = Path(arguments[arguments.index("--data") + 1])
    for part in ("train", "validation"):
        shutil.copytree(source / "train", tmp_path / "data" / part)
    choice = {"data": tmp_path / "data", "streaming": True, "output_dir": tmp_path / "run"}
    metrics = image_recipe.main([*arguments, *flags(choice)])
    assert math.isfinite(metrics["loss"])
    assert (tmp_path / "run" / "samples.gif").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("path", "diffusion", "path='diffusion'.*gaussian, masked"),
        ("times", "bell", "times='bell' must be logit_normal or uniform"),
        ("generators", '{"leap": 1.0}', r"generators.leap "),
        ("generators", '{"flow": 0.7}', "generators="),
        ("divergence", '{"jump": "cosh"}', "divergence='cosh' of rates"),
        ("prediction", "pixels", "prediction='pixels' must be 'belief', 'velocity'"),
        ("patch_size", "3", "patch_size=3 must divide"),
        ("data", "/nowhere", "/nowhere"),
        ("image_column", "img", "column 'img' is not in source"),
    ],
)
def test_image_recipe__an_unknown_choice_is_an_error(
    image_recipe: ModuleType, arguments: list[str], tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        image_recipe.main([*arguments, f"--{name}", value, "--output_dir", str(tmp_path)])
    assert not list(tmp_path.glob("checkpoint-*"))


def test_image_recipe__shows_intermediate_states(image_recipe: ModuleType) -> None:
    """Masks in grey, symbols by their level, numbers as they are."""
    options, config = SimpleNamespace(levels=4), SimpleNamespace(image_shape=[1, 1, 3])
    masked: Any = SimpleNamespace(config=config, path=MaskedPath(5))
    state = image_recipe.visible(torch.tensor([[[[0, 3, 4]]]]), options, masked)
    assert state.flatten().tolist()[:2] == [0, 255]
    assert 100 < int(state.flatten()[2]) < 200
    numbers: Any = SimpleNamespace(config=config, path=GaussianPath())
    assert image_recipe.visible(torch.tensor([[[[-1.0, 1.0, 3.0]]]]), options, numbers).flatten().tolist() == [
        0,
        255,
        255,
    ]
