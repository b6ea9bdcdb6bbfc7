"""README.md and docs/: their Python runs, and the commands, arguments, files, links and classes that they name exist."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import gm_discrete

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
RUN = [ROOT / "README.md", *DOCS]
"""Pages whose Python blocks run."""
PAGES = [*RUN, ROOT / "CONTRIBUTING.md"]
PROGRAMS = {"accelerate", "cd", "curl", "export", "gm-discrete", "git", "make", "pip", "printf", "python", "torchrun"}
OURS = tuple(f"{name}/" for name in ("gm_discrete", "recipes", "benchmarks", "tests", "docs"))
SLOW = {
    "README",
    "developing/adding-a-path",
    "developing/adding-a-sampler",
    "getting-started",
    "how-to/generate",
    "how-to/proteins",
    "how-to/resume",
    "how-to/serve",
    "how-to/train",
    *(f"tutorials/{page.stem}" for page in (ROOT / "docs/tutorials").glob("*.md")),
}
"""Pages that train: more than a second or two on one core."""
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The name on the hub of the model that is also in a package."""
SHORTER = {
    r"\bfor step in range\(\d{2,}\)": "for step in range(4)", r"\bmax_steps=\d{3,}": "max_steps=10",
    r"(?<=, z, )\d{3,}(?=\))": "10", r"\bbatch_size=\d{3,}": "batch_size=20", r"(?<=\bprior\(\()\d{3,}": "20",
    r"\bnum_steps=\d{2,}(?!.*\n?.*output_trajectory)": "num_steps=8", r"\bnum_samples=\d+": "num_samples=2",
    r"\bnum_return_sequences=\d{2,}": "num_return_sequences=4", r"\bmax_new_tokens=\d{3,}(?!.*\n?.*output_tr)":
    "max_new_tokens=32", r"(?<=\bsample\()\d[\d_]{3,}(?=, rng)": "300", r"(?<=\[::)\d(?=\])": "100", r"(?<=\[:)\d{5,}(?=\])":
    "2048", r"(?<=\]\[:)\d{2,3}(?=\])": "4", r"(?<=\.repeat\()\d{2,}(?=\))": "2", r"\bnumber=\d{2,}": "number=8",
    r"(?<=np\.nan\}\), )\d{2,}": "2",
}  # fmt: skip
"""Numbers of steps and samples that only results need, and not the code that leads to them."""
FOREIGN = {
    "AdamW",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "DiffusionGemma",
    "LogitsProcessorList",
    "PreTrainedModel",
    "TemperatureLogitsWarper",
    "TopPLogitsWarper",
    "TrainingArguments",
}
"""Classes of other libraries that the pages name."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def fenced(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name in languages]


def prose(page: Path) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchor_of(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if name_of(page) in SLOW else [], id=name_of(page))
        for page in RUN
        if fenced(page, "python")
    ],
)
def test_documentation__python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    if SMOLLM2 in page.read_text(encoding="utf-8"):
        (tmp_path / SMOLLM2).parent.mkdir()  # a folder is loaded before a name on the hub
        (tmp_path / SMOLLM2).symlink_to(request.getfixturevalue("smollm2"))
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for number, source in enumerate(fenced(page, "python"), start=1):
        for long, short in SHORTER.items():
            source = re.sub(long, short, source)
        exec(compile(source, f"{page.name}, python block {number}", "exec"), namespace)


def test_documentation__every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in DOCS}
    assert len(pages) > 40
    assert set(re.findall(r"[\w/-]+\.md", navigation)) == pages | {"benchmarks/tables.md", "developing/changelog.md"}


def test_readme__is_a_page_of_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def section_of(page: Path, anchor: str) -> str:
    """The text below the heading with this anchor, up to the next heading of its level."""
    parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return next(part for part in parts if anchor_of(part.splitlines()[0]) == anchor)


def test_readme__every_result_is_in_the_table_that_it_links_to() -> None:
    """Each figure of the results, rounded as it is there, is a figure of the section of the benchmarks."""
    rows = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results")[1].split("\n## ")[0].splitlines()
    rows = [row for row in rows if row.startswith("| [")]
    assert len(rows) == 6
    for row in rows:
        found = re.search(r"\(benchmarks/README\.md#([\w-]+)\)", row)
        assert found, row
        section = section_of(ROOT / "benchmarks/README.md", found.group(1))
        measured = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", section)]
        for figure in re.findall(r"\d+(?:\.\d+)?", row.split(" | ")[-1]):
            digits = len(figure.partition(".")[2])
            assert any(round(value, digits) == float(figure) for value in measured), f"{figure} in {row}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the shell blocks of the page, without comments."""
    joined = "\n".join(fenced(page, "bash", "shell")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ") for line in joined.splitlines())
    yield from (words for line in lines if (words := shlex.split(line, comments=True)))


def with_imports(script: Path) -> str:
    """The source of a script, and of the modules beside it that it imports."""
    source = script.read_text(encoding="utf-8")
    names = re.findall(r"^(?:from|import) (?:recipes\.)?(\w+)", source, flags=re.MULTILINE)
    beside = [script.with_name(f"{name}.py") for name in names]
    return "\n".join([source, *(path.read_text(encoding="utf-8") for path in beside if path.exists())])


@every_page
def test_documentation__commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for words in commands(page):
        program = Path(words[0]).name
        assert program in PROGRAMS, words
        if program == "make":
            assert set(words[1:]) <= targets, words
        for word in words[1:]:
            if word.startswith(OURS):
                assert (ROOT / word).exists(), word
        if "-m" in words:
            module = words[words.index("-m") + 1]
            with contextlib.suppress(ModuleNotFoundError):
                assert importlib.util.find_spec(module), module
                continue
            pytest.fail(f"python -m {module}: there is no such module")


@every_page
def test_documentation__arguments_of_commands_exist(page: Path) -> None:
    for words in commands(page):
        scripts = [word for word in words if word.startswith(OURS) and word.endswith(".py")]
        if scripts:
            source = with_imports(ROOT / scripts[0])
            for word in words[words.index(scripts[0]) + 1 :]:
                name = word.removeprefix("--")
                if word.startswith("--") and name != "config" and name not in TrainingArguments.__dataclass_fields__:
                    assert re.search(rf"\b{name}: |\"{word}\"", source), f"{scripts[0]} {word}"


@every_page
def test_documentation__files_named_in_the_text_exist(page: Path) -> None:
    """Words in backticks that look like paths of this repository; `*` stands for several files."""
    for word in re.findall(r"`([\w./*-]+)`", prose(page)):
        if word.startswith(OURS):
            assert list(ROOT.glob(word.rstrip("/"))), word
        if re.fullmatch(r"[\w*]+\.yaml", word):
            assert list((ROOT / "recipes/configs").glob(word)), word


@every_page
def test_documentation__links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)", prose(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(to), flags=re.MULTILINE)
            assert anchor in map(anchor_of, headings), target


@every_page
def test_documentation__classes_named_in_the_text_exist(page: Path) -> None:
    """Words in backticks such as `TauLeaping` or `TauLeaping(order="margin")`."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "gm_discrete").rglob("*.py"))
    ours = {*re.findall(r"^class (\w+)", text, flags=re.MULTILINE), *dir(builtins)}
    for name in re.findall(r"`([A-Z]\w*[a-z]\w*[A-Z]\w*)\b", prose(page)):
        assert name in ours | FOREIGN, name


def test_documentation__glossary_covers_the_layout() -> None:
    """The table of CONTRIBUTING.md names every part of the package."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Layout")[1].split("\n## ")[0]
    parts = {
        f"{place.name}{'/' * place.is_dir()}"
        for place in (ROOT / "gm_discrete").iterdir()
        if (place.is_dir() and (place / "__init__.py").exists()) or (place.suffix == ".py" and place.stem[0] != "_")
    }
    assert [part for part in sorted(parts) if part not in table] == []


@pytest.mark.slow
def test_generation_page__has_the_table_that_the_program_prints() -> None:
    run = [sys.executable, "-m", "gm_discrete.generation.validation"]
    printed = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    page = (ROOT / "docs/how-to/generate.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- table: generation -->\n(.*?)^<!-- end -->$", page, flags=re.MULTILINE | re.DOTALL)
    assert found, "docs/how-to/generate.md has no markers for the table"
    assert found.group(1).strip() == printed, f"paste the output of {' '.join(run[1:])} into docs/how-to/generate.md"


def test_citation__has_the_version_of_the_package() -> None:
    assert f"\nversion: {gm_discrete.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
