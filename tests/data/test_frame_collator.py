"""Batches of chains as frames of their residues."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from gm_discrete.data import FrameCollator, frames_of
from gm_discrete.data.proteins import UNKNOWN
from gm_discrete.generators import quaternions
from tests.helpers.proteins import hairpin, helix


def example(atoms: torch.Tensor) -> dict[str, Any]:
    rotation, translation = frames_of(atoms.float())
    return {"rotation": rotation.numpy(), "translation": translation.numpy(), "residue": np.arange(len(atoms)) % 20}


LONG, SHORT = example(hairpin(6)), example(helix(5))
AS_IT_IS = FrameCollator(rotate=False, centre=False, random_crop=False)


def test_frame_collator__pads_with_identity_and_unscored_labels() -> None:
    batch = AS_IT_IS([LONG, SHORT])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch["fields"].items()} == {
        "rotation": ((2, 14, 4), torch.float32),
        "translation": ((2, 14, 3), torch.float32),
        "residue": ((2, 14), torch.long),
    }
    for name, values in LONG.items():
        assert np.array_equal(batch["fields"][name][0].numpy(), values)
        assert np.array_equal(batch["labels"][name][0].numpy(), values)
        assert np.array_equal(batch["fields"][name][1, :5].numpy(), SHORT[name])
    assert batch["fields"]["rotation"][1, 5:].tolist() == [[1, 0, 0, 0]] * 9
    assert batch["fields"]["translation"][1, 5:].tolist() == [[0, 0, 0]] * 9
    assert batch["fields"]["residue"][1, 5:].tolist() == [UNKNOWN] * 9
    assert batch["labels"]["residue"][1, 5:].tolist() == [-100] * 9
    for name in ("rotation", "translation"):
        assert bool(batch["labels"][name][1, 5:].isnan().all())
        assert not bool(batch["labels"][name][1, :5].isnan().any())
    assert batch["attention_mask"]["rotation"].tolist() == [[1] * 14, [1] * 5 + [0] * 9]
    assert batch["attention_mask"].keys() == batch["fields"].keys()


def test_frame_collator__no_mask_without_padding_and_x_is_unscored() -> None:
    row = {**LONG, "residue": np.full(14, UNKNOWN), "name": "1abc:A"}
    batch = AS_IT_IS([row, LONG])
    assert batch.keys() == {"fields", "labels"}
    assert batch["fields"].keys() == {"rotation", "translation", "residue"}
    assert batch["fields"]["residue"][0].tolist() == [UNKNOWN] * 14
    assert batch["labels"]["residue"][0].tolist() == [-100] * 14
    assert not bool(batch["labels"]["rotation"].isnan().any())


def test_frame_collator__one_rotation_turns_each_chain_about_its_centre() -> None:
    torch.manual_seed(0)
    fields = FrameCollator()([LONG, LONG, SHORT])["fields"]
    for row, source in enumerate((LONG, LONG, SHORT)):
        size = len(source["residue"])
        before = torch.from_numpy(source["rotation"])
        after = fields["rotation"][row, :size]
        turn = quaternions.multiply(after, quaternions.conjugate(before))
        assert float(quaternions.half_angle(turn, turn[:1]).max()) < 1e-3
        moved = torch.from_numpy(source["translation"])
        moved = quaternions.rotate(turn[:1], moved - moved.mean(0))
        assert torch.allclose(fields["translation"][row, :size], moved, atol=1e-5)
        assert torch.allclose(fields["translation"][row].sum(0), torch.zeros(3), atol=1e-5)
    assert float(quaternions.half_angle(fields["rotation"][0, 0], fields["rotation"][1, 0])) > 0.01
    assert torch.allclose(fields["rotation"].norm(dim=-1), torch.ones(3, 14))


def test_frame_collator__rotations_are_uniform() -> None:
    torch.manual_seed(1)
    one = {name: values[:1] for name, values in SHORT.items()}
    matrices = quaternions.to_matrix(FrameCollator()([one] * 2000)["fields"]["rotation"][:, 0])
    # An entry has mean 0 and variance 1/3; 5.5 standard errors, for nine of them: failure rate 4e-7.
    assert float(matrices.mean(0).abs().max()) < 5.5 * (1 / 3 / 2000) ** 0.5


def test_frame_collator__crops_are_successive_and_begin_anywhere() -> None:
    torch.manual_seed(2)
    fields = FrameCollator(length=5)([LONG] * 200)["fields"]
    assert fields["residue"].shape == (200, 5)
    starts = fields["residue"][:, 0]
    assert torch.equal(fields["residue"], starts[:, None] + torch.arange(5))
    # Of ten places each is missed with the probability 0.9^200; failure rate 1e-8.
    assert set(starts.tolist()) == set(range(10))
    assert torch.allclose(fields["translation"].mean(1), torch.zeros(200, 3), atol=1e-5)
    first = FrameCollator(length=5, random_crop=False)([LONG, SHORT])["fields"]["residue"]
    assert first.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert FrameCollator(length=20)([SHORT])["fields"]["residue"].shape == (1, 5)


def test_frame_collator__follows_the_global_seed() -> None:
    rows = Dataset.from_list([LONG, SHORT] * 3)

    def batches(workers: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        loader = DataLoader(rows, batch_size=3, collate_fn=FrameCollator(length=4), num_workers=workers)  # pyright: ignore[reportArgumentType]
        return [batch["fields"]["translation"] for batch in loader]

    first, second = batches(0), batches(0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residue": None}, "no 'residue'"),
        ({"residue": np.arange(4)}, r"\(14, 4\).*\(4,\)"),
        ({"residue": np.full(14, 21)}, "residue holds 21"),
        ({"rotation": np.zeros((14, 4))}, "rotation .*length 0"),
        ({"translation": np.full((14, 3), np.nan)}, "translation holds nan"),
        ({"translation": np.zeros((3, 3))}, r"\(14, 4\).*\(3, 3\)"),
    ],
)
def test_frame_collator__refuses_what_is_no_chain(changes: dict[str, Any], message: str) -> None:
    row = {name: value for name, value in {**LONG, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        FrameCollator()([row])


def test_frame_collator__length_is_positive() -> None:
    with pytest.raises(ValueError, match="length=0"):
        FrameCollator(length=0)
