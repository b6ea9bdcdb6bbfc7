"""Hooks of mkdocs: tutorials appear with the outputs of their notebooks, and files from outside docs/ become pages.

See https://www.mkdocs.org/user-guide/configuration/#hooks for the functions that mkdocs calls.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PICTURES = ("image/png", "image/gif", "image/jpeg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds benchmarks/README.md with its figures, and CHANGELOG.md."""
    tables = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "benchmarks/tables.md", content=for_the_site(tables)))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](../")
    files.append(File.generated(config, "developing/changelog.md", content=changes))
    for figure in sorted((BENCHMARKS / "figures").iterdir()):
        files.append(File.generated(config, f"benchmarks/figures/{figure.name}", abs_src_path=str(figure)))
    return files


def for_the_site(tables: str) -> str:
    """benchmarks/README.md with links that lead from the site: pages of docs/ are one folder up, files are only named."""
    tables = tables.replace("](../docs/", "](../")
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|figures/|\.\./[\w/-]+\.md)[^)]+\)", r"\1", tables)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The notebook of a tutorial in place of its source, and links to other folders as the site has them."""
    uri = page.file.src_uri
    notebook = ROOT / "docs" / Path(uri).with_suffix(".ipynb")
    if uri.startswith("tutorials/") and notebook.exists():
        cells = nbformat.read(notebook, as_version=4).cells
        download = f"[download as a notebook]({notebook.name}){{ .notebook }}"
        markdown = "\n\n".join([download, *map(rendered, cells)])
    up = "../" * uri.count("/")  # from the folder of the page to docs/; on GitHub benchmarks/ is beside docs/
    markdown = markdown.replace(f"](../{up}CHANGELOG.md", f"]({up}developing/changelog.md")
    markdown = markdown.replace(f"](../{up}benchmarks/README.md", f"]({up}benchmarks/tables.md")
    return markdown.replace(f"](../{up}benchmarks/figures/", f"]({up}benchmarks/figures/")


def rendered(cell: NotebookNode) -> str:
    """Markdown of a cell: its text, or its code and outputs."""
    if cell.cell_type != "code":
        return cell.source
    outputs = [shown for output in cell.outputs if (shown := rendered_output(output))]
    return "\n\n".join([f"```python\n{cell.source}\n```", *outputs])


def rendered_output(output: NotebookNode) -> str:
    """A picture, a table in HTML, or text."""
    data: dict[str, Any] = output.get("data", {})
    for kind in PICTURES:
        if kind in data:
            return f"![output](data:{kind};base64,{''.join(data[kind].split())})"
    if "text/html" in data:
        return f'<div class="output" markdown="0">{data["text/html"]}</div>'
    text = output.get("text") or data.get("text/plain", "")
    return f'<pre class="output">{html.escape(text.rstrip())}</pre>' if text.strip() else ""
