"""Fields that cannot be frames are named; a model of frames is equivariant, and survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import GaussianPath, GeodesicSO3Path, GMConfig, GMModel, MaskedPath, ProductPath, SO3Path
from gm_discrete.generators import quaternions
from gm_discrete.generators.landings import Bins
from gm_discrete.paths import Path

B, L = 2, 6
POINTS = GaussianPath(num_channels=3, data_std=1.1)
FIELDS = ProductPath(rotation=SO3Path(num_components=2), translation=POINTS, residue=MaskedPath(22))
SMALL: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
TIMES = torch.tensor([0.3, 0.8], dtype=torch.float64)


def config(path: Path = FIELDS, **options: Any) -> GMConfig:
    names = list(path.fields)
    lengths = {name: {"length": L} for name in names}
    given = {"path": path, "aligned": [names], "fields": lengths, "frames": ("rotation", "translation"), **SMALL}
    return GMConfig(**{**given, **options})


def model(path: Path = FIELDS, **options: Any) -> GMModel:
    """One whose parameters are all random, also those that start at zero."""
    made, rng = GMModel(config(path, **options)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    return made.eval()


def state(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "rotation": quaternions.uniform((B, L), rng, dtype=dtype),
        "translation": torch.randn(B, L, 3, generator=rng, dtype=dtype),
        "residue": torch.randint(22, (B, L), generator=rng),
    }


def turned(x: dict[str, Tensor], turn: Tensor, move: float) -> dict[str, Tensor]:
    moved = quaternions.rotate(turn, x["translation"]) + move
    return {**x, "rotation": quaternions.multiply(turn, x["rotation"]), "translation": moved}


TURN = quaternions.uniform((B, 1), torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("conv_kernel_size", [0, 3])
def test_network__output_does_not_change_when_all_frames_are_turned_and_moved(conv_kernel_size: int) -> None:
    net = model(conv_kernel_size=conv_kernel_size).double().network
    outputs = []
    for x in (state(), turned(state(), TURN, 3.0), {**state(), "translation": state()["translation"].flip(1)}):
        final = net.backbone.finish(net.hidden(x, TIMES), TIMES)
        outputs.append(torch.cat([head(final) for head in net.heads.values()], -1))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-9)
    assert (outputs[2] - outputs[0]).abs().max() > 1e-3


@pytest.mark.parametrize("rotation", [SO3Path({"flow": 0.5, "jump": 0.5}, num_components=2), GeodesicSO3Path()])
def test_generator__turns_with_the_frames(rotation: SO3Path | GeodesicSO3Path) -> None:
    made = model(ProductPath(rotation=rotation, translation=POINTS, residue=MaskedPath(22))).double()
    x, names = state(), ("rotation", "translation")
    before, after = made.generator(x, TIMES), made.generator(turned(x, TURN, 0.0), TIMES)
    old, new = ({name: g.factors[name].parts["flow"].velocity for name in names} for g in (before, after))  # pyright: ignore[reportAttributeAccessIssue]
    # The readout is in float32.
    torch.testing.assert_close(new["rotation"], quaternions.multiply(TURN, old["rotation"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new["translation"], quaternions.rotate(TURN, old["translation"]), rtol=1e-4, atol=1e-5)
    assert all(part.abs().max() > 1e-2 for part in old.values())


def test_network__documents_and_padding_do_not_leak() -> None:
    net, x = model().double().network, state()
    documents = torch.tensor([[1, 1, 1, 2, 2, 0]]).expand(B, L)
    masks = dict.fromkeys(x, documents)
    before = net.hidden(x, TIMES, masks)
    other = {name: torch.cat([part[:, :3], part[:, 3:].flip(1)], 1) for name, part in x.items()}
    torch.testing.assert_close(net.hidden(other, TIMES, masks)[:, :3], before[:, :3], rtol=0, atol=1e-12)
    alone = net.hidden({name: part[:, :3] for name, part in x.items()}, TIMES)
    torch.testing.assert_close(alone, before[:, :3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss__of_frames_has_finite_gradients(dtype: torch.dtype) -> None:
    made, z = model(), state(torch.float32)
    rng = torch.Generator().manual_seed(3)
    x = {name: part.sample(z[name], TIMES, rng) for name, part in made.path.fields.items()}
    x["translation"][:, :2] = 0.0  # two in one place
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = made(fields=x, time=TIMES, labels=z).loss
    assert loss is not None
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in made.parameters())


def test_network__of_frames_alone_takes_no_other_field() -> None:
    path = ProductPath(rotation=SO3Path(num_components=2), translation=POINTS)
    x = {name: part for name, part in state(torch.float32).items() if name != "residue"}
    net = model(path).network
    assert net.hidden(x, TIMES).shape == (B, L, 16)


def test_config__frames_survive_json() -> None:
    made = config()
    again = GMConfig.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again.frames == made.frames == ["rotation", "translation"]
    assert config(frames=None).frames is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": MaskedPath(4), "aligned": None, "fields": None}, "frames=.*single"),
        ({"frames": ("rotation", "place")}, "frames=.*'place'.*rotation, translation, residue"),
        ({"frames": ("translation", "rotation")}, "frames=.*first.*rotations.*GaussianPath"),
        ({"frames": ("rotation", "residue")}, "frames=.*second.*num_channels=3.*MaskedPath"),
        ({"aligned": [["rotation", "translation"]]}, r"frames=.*aligned=\[\['rotation', 'translation', 'residue'\]\]"),
        ({"frames": ["rotation"]}, r"frames=\['rotation'\] must be a list of 2"),
    ],
)
def test_config__bad_frames_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (GaussianPath(num_channels=2), "num_channels=3.*num_channels=2"),
        (GaussianPath({"jump": 1.0}, num_channels=3, bins=Bins(-9.0, 9.0, 8)), "without bins.*GaussianPath"),
        (GaussianPath(num_channels=3, data_mean=2.0), "translation has data_mean=2.0.*data_mean=0"),
    ],
)
def test_config__points_whose_prediction_is_not_equivariant_are_named(points: GaussianPath, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(ProductPath(rotation=SO3Path(), translation=points, residue=MaskedPath(22)))


def test_config__names_of_frames_are_strings() -> None:
    with pytest.raises(TypeError, match=r"frames\[0\]=3 must be the name of a field"):
        config(frames=(3, "translation"))
