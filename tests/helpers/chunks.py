"""Chunks of few rows, which take no vocabulary of 50,000 symbols."""

import pytest

from gm_discrete.generators import rows

CONSTANTS = ("CPU_ELEMENTS", "ELEMENTS", "KEPT_ELEMENTS")


def set_chunks(elements: int, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Cuts rows into chunks of that many elements, and keeps no more of them for backward, for the rest of the test (without
    `monkeypatch`: of the process)."""
    for name in CONSTANTS:
        if monkeypatch is None:
            setattr(rows, name, elements)
        else:
            monkeypatch.setattr(rows, name, elements)
