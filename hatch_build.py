"""The build's description of the package, which PyPI shows: README.md without what leads into the repository.

There a link to a file beside README.md is dead. Such links become their text; pictures, and sentences about links, are left
out.
"""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

FENCED = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]+\)\n\n(?:\*[^*]+\*\n\n)?")
"""A picture, and the line in italics below it."""
ABOUT_LINKS = re.compile(r"\s?\bEach row links to[^.]*\.")
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")


def portable(text: str) -> str:
    """Markdown whose links are absolute; blocks of code stay as they are."""
    parts = FENCED.split(text)
    for at in range(0, len(parts), 2):
        parts[at] = LINK.sub(r"\1", ABOUT_LINKS.sub("", PICTURE.sub("", parts[at])))
    return "".join(parts)


class ReadmeHook(MetadataHookInterface):
    """Sets `readme`, which pyproject.toml calls dynamic."""

    def update(self, metadata: dict) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": portable(text)}
