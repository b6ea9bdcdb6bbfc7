"""Names of fields as names of modules and buffers."""

from __future__ import annotations

import re


def module_name(name: str) -> str:
    """A name without dots, which torch does not allow: `petal.length` becomes `petal%2Elength`, no other name does."""
    return re.sub(r"%(?=25|2E)|\.", lambda found: "%2E" if found[0] == "." else "%25", name)
