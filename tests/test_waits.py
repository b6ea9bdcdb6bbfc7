"""`waits` counts what would wait for a GPU, and the library reads no values where `readable` says no."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gm_discrete import MaskedPath
from gm_discrete.arguments import readable
from tests.helpers.waits import waits

X = torch.arange(4.0)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor(3.0),
    ],
)
def test_waits__counts_each(wait: Callable[[Tensor], object]) -> None:
    with waits() as found:
        wait(X)
    assert len(found) == 1
    assert "test_waits.py" in found[0]


def test_waits__does_not_count_other_operations() -> None:
    with waits() as found:
        (
            torch.where(X > 1, 0.0, X).masked_fill(X > 2, 1.0).gather(0, torch.zeros(1, dtype=torch.long)) * 2
            + X.double().sum()
        )
    assert not found


def test_readable__is_switched_off_within_waits() -> None:
    path, t = MaskedPath(5), torch.full((1,), 0.5)
    with waits() as found:
        assert not readable(X)
        path.check(torch.zeros(1, 3, dtype=torch.long), t, "x")
    assert readable(X)
    assert not found
    with waits(readable=True) as found:
        path.check(torch.zeros(1, 3, dtype=torch.long), t, "x")
    assert found
