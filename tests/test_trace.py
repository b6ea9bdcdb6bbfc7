"""The path of a call stays short."""

import pytest

from tests.trace import calls, traced

AT_MOST = {  # functions, files
    "conditional_loss, masked": (78, 13),
    "generate(length=32, num_steps=1)": (106, 22),
    "conditional_loss, three fields": (142, 20),
}


@pytest.mark.parametrize("name", AT_MOST)
def test_trace__a_call_passes_through_few_functions(name: str) -> None:
    found = traced(calls()[name])
    functions, files = AT_MOST[name]
    assert 5 < len(found) <= functions
    assert len({code.co_filename for code in found}) <= files
