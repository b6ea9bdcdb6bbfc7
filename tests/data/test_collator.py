import pytest
import torch

from gm_discrete.data import TokenCollator


def test_token_collator__padding_is_neither_attended_nor_scored() -> None:
    batch = TokenCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": torch.tensor([9])}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [9, -100, -100]]
    assert all(tensor.dtype == torch.long for tensor in batch.values())


def test_token_collator__labels_of_the_example_are_kept() -> None:
    prompted = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    batch = TokenCollator(pad_token_id=0)([prompted, {"input_ids": [5, 6, 7, 8]}])
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [5, 6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_token_collator__padding_of_the_tokenizer_is_not_scored() -> None:
    batch = TokenCollator(pad_token_id=0)([{"input_ids": [0, 0, 4], "attention_mask": [0, 0, 1]}])
    assert batch["attention_mask"].tolist() == [[0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 4]]


def test_token_collator__numbers_of_documents_are_kept() -> None:
    packed = {"input_ids": [1, 2, 3], "attention_mask": [1, 2, 2]}
    batch = TokenCollator(pad_token_id=0)([packed, {"input_ids": [5, 6], "attention_mask": [1, 1]}])
    assert batch["attention_mask"].tolist() == [[1, 2, 2], [1, 1, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [5, 6, -100]]


@pytest.mark.parametrize("masks", [{}, {"attention_mask": [1, 1]}, {"attention_mask": [3, 3]}])
def test_token_collator__a_mask_of_no_effect_is_left_out(masks: dict) -> None:
    rows = [{"input_ids": [1, 2]}, {"input_ids": [3, 4], **masks}]
    assert TokenCollator(pad_token_id=0)(rows).keys() == {"input_ids", "labels"}
    assert "attention_mask" in TokenCollator(pad_token_id=0, pad_to_multiple_of=4)(rows)


@pytest.mark.parametrize(("longest", "padded"), [(1, 8), (8, 8), (9, 16)])
def test_token_collator__length_is_rounded_up(longest: int, padded: int) -> None:
    batch = TokenCollator(pad_token_id=0, pad_to_multiple_of=8)([{"input_ids": [1] * longest}, {"input_ids": [1]}])
    assert {tensor.shape for tensor in batch.values()} == {(2, padded)}
    assert batch["attention_mask"].sum() == longest + 1


def test_token_collator__draws_no_noise() -> None:
    state = torch.get_rng_state()
    TokenCollator(pad_token_id=0)([{"input_ids": [1, 2]}])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("example", "match"),
    [
        ({"input_ids": []}, r"\(0,\)"),
        ({"input_ids": [1, 2], "labels": [1]}, r"'labels': \(1,\)"),
        ({"input_ids": [[1, 2]]}, r"\(1, 2\)"),
        ({"input_ids": [1], "text": "a"}, r"columns \['input_ids', 'text'\]"),
        ({"labels": [1]}, "input_ids"),
    ],
)
def test_token_collator__bad_examples_are_named(example: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TokenCollator(pad_token_id=0)([example])
