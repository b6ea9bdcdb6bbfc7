"""The site builds without a warning, and the notebooks are those of the tutorials."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]


def loaded(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = loaded("notebooks")
TUTORIALS = notebooks.sources()
every_tutorial = pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_site__builds_without_warnings_and_has_every_page(site: Path) -> None:
    pages = {page.relative_to(site).as_posix() for page in site.rglob("index.html")}
    sources = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert {f"{name.removesuffix('index').rstrip('/')}/index.html".lstrip("/") for name in sources} <= pages
    assert {"benchmarks/tables/index.html", "developing/changelog/index.html"} <= pages


@pytest.mark.slow
def test_site__every_link_and_picture_of_its_own_exists(site: Path) -> None:
    """Strict builds check links between Markdown pages; this also checks pictures, raw HTML and the links of themes."""
    wrong = []
    for page in site.rglob("index.html"):
        for target in re.findall(r'\b(?:href|src)="?([^"\s>]+)', html(page)):
            if re.match(r"[a-z]+:|//|#", target):
                continue
            file, _, anchor = target.partition("#")
            to = (page.parent / file.split("?")[0]).resolve()
            to = to / "index.html" if to.is_dir() else to
            if not to.exists() or (anchor and to.suffix == ".html" and f'id="{anchor}"' not in html(to)):
                wrong.append(f"{page.relative_to(site)}: {target}")
    assert wrong == []


@pytest.mark.slow
def test_site__loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("index.html"):
        loads = re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="?(https?:[^"\s>]+)', html(page))
        assert [url for url in loads if not url.startswith("https://squidfunk")] == [], page


@pytest.mark.slow
def test_site__reference_documents_every_public_name(site: Path) -> None:
    """What `gm_discrete` exports stands in the reference, under the name of the part that it comes from."""
    import gm_discrete

    reference = "".join(html(page) for page in (site / "reference").rglob("index.html"))
    documented = set(re.findall(r'id="gm_discrete\.(?:\w+\.)*(\w+)"', reference))
    assert sorted(set(gm_discrete.__all__) - documented) == []


@every_tutorial
def test_notebook__has_the_cells_of_its_tutorial(page: Path) -> None:
    """`make notebooks` was run after the last change of the text."""
    committed = jupytext.read(page.with_suffix(".ipynb"))
    expected = notebooks.unexecuted(page)
    kinds = [(cell.cell_type, cell.source) for cell in committed.cells]
    assert kinds == [(cell.cell_type, cell.source) for cell in expected.cells], f"make notebooks NAMES={page.stem}"


@every_tutorial
def test_notebook__was_executed_without_errors_and_shows_a_picture(page: Path) -> None:
    notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) or "image/gif" in output.get("data", {}) for output in outputs)
    assert page.with_suffix(".ipynb").stat().st_size < 1_000_000


@pytest.mark.slow
def test_notebooks__are_executed_by_a_kernel(tmp_path: Path) -> None:
    """What `make notebooks` does, on a page of one cell; the cells of the tutorials run in test_documentation.py."""
    page = tmp_path / "small.md"
    page.write_text("# Small\n\n```python\n1 + 1\n```\n\nA command:\n\n```shell\nmake demo\n```\n", encoding="utf-8")
    notebooks.execute(page)
    cells = nbformat.read(tmp_path / "small.ipynb", as_version=4).cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "markdown"]
    assert cells[1].outputs[0].data["text/plain"] == "2"
    assert "```shell\nmake demo\n```" in cells[2].source
