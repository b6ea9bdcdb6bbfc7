import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_discrete.evaluation import SampleEntropy, unigram_entropy


@pytest.mark.parametrize("repeats", [1, 3])
def test_unigram_entropy__of_even_shares(repeats: int) -> None:
    assert unigram_entropy([7, 900, 3, 4] * repeats) == pytest.approx(math.log(4), rel=1e-14)
    assert unigram_entropy([5] * repeats) == 0


def test_unigram_entropy__of_uneven_shares() -> None:
    assert unigram_entropy([0, 0, 0, 1]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-14)


@given(st.lists(st.integers(0, 5), min_size=1))
def test_unigram_entropy__ignores_order_and_is_bounded(tokens: list[int]) -> None:
    entropy = unigram_entropy(tokens)
    assert -1e-12 <= entropy <= math.log(len(set(tokens))) + 1e-12
    assert unigram_entropy(sorted(tokens)) == pytest.approx(entropy, abs=1e-12)


def test_sample_entropy__averages_over_samples(tmp_path: Path) -> None:
    metric = SampleEntropy(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[[1, 2], [1, 1]])
    metric.add_batch(predictions=[[1, 2, 3, 4]])
    result: Any = metric.compute()
    values = [math.log(2), 0, math.log(4)]
    assert result["entropy"] == pytest.approx(math.log(2))
    spread = math.sqrt(sum((value - math.log(2)) ** 2 for value in values) / 2)
    assert result["stderr"] == pytest.approx(spread / math.sqrt(3))
    single: Any = metric.compute(predictions=[[1, 2]])
    assert math.isnan(single["stderr"])


def test_sample_entropy__an_empty_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token_ids "):
        SampleEntropy(cache_dir=str(tmp_path)).compute(predictions=[[1], []])
