from typing import Any

import numpy as np
import pytest
import torch

from gm_discrete.data import ImageCollator, to_uint8

BYTES = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)


def test_image_collator__numbers_span_minus_one_to_one() -> None:
    batch = ImageCollator()([{"pixel_values": BYTES, "class_labels": 7}, {"pixel_values": BYTES, "class_labels": 2}])
    assert batch["input_values"].shape == (2, 1, 16, 16)
    assert batch["input_values"].dtype == torch.float32
    assert torch.equal(batch["input_values"], batch["labels"])
    assert batch["class_labels"].tolist() == [7, 2]
    assert batch["class_labels"].dtype == torch.long
    values = batch["input_values"][0].flatten()
    assert (values[0].item(), values[-1].item()) == (-1, 1)
    assert torch.allclose(values, torch.linspace(-1, 1, 256), atol=1e-6)
    assert torch.equal(to_uint8(batch["input_values"]), torch.stack([BYTES, BYTES]))


def test_image_collator__tokens_come_in_raster_order() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    batch = ImageCollator(levels=256)([{"pixel_values": image}])
    assert batch["input_ids"].tolist() == [list(range(12))]
    assert batch["input_ids"].dtype == torch.long
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch.keys() == {"input_ids", "labels"}
    assert torch.equal(to_uint8(batch["input_ids"], levels=256, shape=(3, 2, 2))[0], image)


@pytest.mark.parametrize("levels", range(2, 257))
def test_image_collator__levels_are_even_and_survive_to_uint8(levels: int) -> None:
    collate = ImageCollator(levels=levels)
    symbols = collate([{"pixel_values": BYTES}])["input_ids"]
    assert symbols.tolist() == [[value * levels // 256 for value in range(256)]]
    counts = symbols.flatten().bincount(minlength=levels)
    assert counts.min() >= 256 // levels
    images = to_uint8(symbols, levels=levels, shape=(1, 16, 16))
    assert images.dtype == torch.uint8
    assert torch.equal(collate([{"pixel_values": images[0]}])["input_ids"], symbols)
    assert (images.flatten()[0], images.flatten()[-1]) == (0, 255)
    assert (images.flatten().diff() >= 0).all()


def test_image_collator__dequantised_bytes_are_uniform_and_invertible() -> None:
    torch.manual_seed(0)
    examples = [{"pixel_values": BYTES}] * 100
    values = ImageCollator(dequantize=True)(examples)["input_values"]
    noise = (values + 1) * 255 / 2 - BYTES.float()
    assert noise.abs().max() <= 0.5 + 1e-4  # the rounding of a float32 near 255
    # A mean of 25,600 uniforms has the standard deviation 0.0018, a share of them below 1/4 one of 0.0027; four of those.
    assert noise.mean().abs() < 0.0072
    assert (noise < -0.25).float().mean() == pytest.approx(0.25, abs=0.011)
    assert torch.equal(to_uint8(values), BYTES.expand(100, 1, 16, 16))


def test_image_collator__only_dequantising_draws_noise() -> None:
    state = torch.get_rng_state()
    ImageCollator()([{"pixel_values": BYTES}])
    ImageCollator(levels=4)([{"pixel_values": BYTES}])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    first = ImageCollator(dequantize=True)([{"pixel_values": BYTES}])["input_values"]
    torch.manual_seed(1)
    assert torch.equal(ImageCollator(dequantize=True)([{"pixel_values": BYTES}])["input_values"], first)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda rows: rows, lambda rows: np.array(rows, "u1")])
def test_image_collator__rows_may_be_arrays_tensors_or_lists(convert: Any) -> None:
    rows = [[[0, 255], [10, 20]]]
    batch = ImageCollator(levels=256)([{"pixel_values": convert(rows), "class_labels": np.int64(3)}])
    assert batch["input_ids"].tolist() == [[0, 255, 10, 20]]
    assert batch["class_labels"].tolist() == [3]


def test_to_uint8__clamps() -> None:
    assert to_uint8(torch.tensor([[[[-7.0, 1.2, 0.0]]]], dtype=torch.bfloat16)).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    ("examples", "match"),
    [
        (
            [{"pixel_values": torch.zeros(2, 4, 4, dtype=torch.uint8)}],
            r"pixel_values .*\(2, 4, 4\)",
        ),
        ([{"pixel_values": torch.zeros(4, 4, dtype=torch.uint8)}], r"pixel_values .*\(4, 4\)"),
        ([{"pixel_values": torch.zeros(1, 4, 4)}], r"pixel_values .*torch\.float32"),
        ([{"pixel_values": torch.full((1, 4, 4), torch.nan)}], r"pixel_values .*torch\.float32"),
        ([{"pixel_values": torch.full((1, 4, 4), 256)}], r"pixel_values .*256"),
        ([{"pixel_values": torch.full((1, 4, 4), -1)}], r"pixel_values .*-1"),
        ([{"image": BYTES}], r"\['image'\].*pixel_values"),
        (
            [{"pixel_values": BYTES}, {"pixel_values": BYTES[:, :8]}],
            r"pixel_values .*\[\(1, 8, 16\), \(1, 16, 16\)\]",
        ),
        ([{"pixel_values": BYTES}, {"pixel_values": BYTES, "class_labels": 1}], "class_labels"),
        ([], "pixel_values"),
    ],
)
def test_image_collator__bad_examples_are_named(examples: list[dict[str, Any]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ImageCollator()(examples)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ImageCollator(levels=1), "levels=1 "),
        (lambda: ImageCollator(levels=257), "levels=257 "),
        (lambda: ImageCollator(levels=4, dequantize=True), r"dequantize=True .*levels=4"),
        (lambda: to_uint8(torch.zeros(1, 1, 2, 2), levels=4), r"dtype=torch\.float32 and levels=4"),
        (lambda: to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.long)), r"dtype=torch\.int64 and levels=None"),
        (lambda: to_uint8(torch.zeros(1, 4, dtype=torch.long), levels=4), r"images .*\(1, 4\).*shape=None"),
        (lambda: to_uint8(torch.zeros(1, 4, dtype=torch.long), levels=4, shape=(1, 2, 3)), r"shape=\(1, 2, 3\)"),
        (lambda: to_uint8(torch.zeros(2, 2, 2)), r"images .*\(2, 2, 2\)"),
        (lambda: to_uint8(torch.full((1, 1, 2, 2), torch.inf)), r"images .*not finite"),
        (lambda: to_uint8(torch.full((1, 1, 2, 2), 4), levels=4), r"images .*4.*levels=4"),
    ],
)
def test_image_collator__bad_arguments_are_named(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
