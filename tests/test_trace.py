"""The path of a call stays short."""

import re
from pathlib import Path

import pytest

from tests.trace import calls, traced

# What `python tests/trace.py` prints: (functions, files). Lower a limit when a call gets shorter.
LIMITS = {
    "conditional_loss, masked": (93, 21),
    "generate(length=32)": (113, 27),
    "generate(length=32, num_steps=1)": (113, 27),
    "conditional_loss, three fields": (144, 32),
}


def test_trace__every_call_has_a_limit() -> None:
    assert calls().keys() == LIMITS.keys()


@pytest.mark.parametrize("name", LIMITS)
def test_trace__a_call_passes_through_few_functions(name: str) -> None:
    found = traced(calls()[name])
    functions, files = LIMITS[name]
    assert 5 < len(found) <= functions
    assert len({code.co_filename for code in found}) <= files


def test_trace__the_page_has_the_limits() -> None:
    page = (Path(__file__).parents[1] / "docs/developing/layers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \|$", page, flags=re.MULTILINE)
    assert {name: (int(functions), int(files)) for name, functions, files in rows} == LIMITS
