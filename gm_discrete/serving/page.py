"""The page of a server: one file without anything from elsewhere, which the policy lets run only as it is."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files("gm_discrete.serving").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """Those of the contents of all elements of a kind, as sources of a policy."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


POLICY = (
    f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the script and the style of the page, and requests to its own server."""
