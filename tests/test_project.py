"""Files of the project: workflows, templates, the citation and the changelog."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="the sdist has no workflows")


def read(file: Path) -> Any:
    return yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # `on` stays a word


def workflows() -> list[Path]:
    return sorted((GITHUB / "workflows").glob("*.yml"))


def test_workflows__are_test_docs_and_release() -> None:
    assert [file.stem for file in workflows()] == ["docs", "release", "test"]
    assert read(GITHUB / "workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == [
        "3.11",
        "3.12",
        "3.13",
    ]
    release = read(GITHUB / "workflows/release.yml")["jobs"]
    assert release["publish"]["permissions"] == {"id-token": "write"}
    assert release["test"] == {"uses": "./.github/workflows/test.yml"}  # a release is tested
    assert "workflow_call" in read(GITHUB / "workflows/test.yml")["on"]
    assert release["publish"]["needs"] == ["test", "build"]
    docs = read(GITHUB / "workflows/docs.yml")  # a deployment that has begun is not stopped
    assert docs["concurrency"]["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"


@pytest.mark.parametrize("file", workflows(), ids=lambda file: file.stem)
def test_workflows__name_make_targets_and_files_that_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    jobs = read(file)["jobs"].values()
    assert all((ROOT / job["uses"]).is_file() for job in jobs if "uses" in job)
    steps = [step for job in jobs for step in job.get("steps", ())]
    assert all({"run", "uses"} & step.keys() for step in steps)
    commands = [shlex.split(line) for step in steps for line in step.get("run", "").splitlines()]
    made = [word for words in commands if words[0] == "make" for word in words[1:]]
    assert made
    assert set(made) <= targets
    scripts = [word for words in commands for word in words if word.startswith(".ci/")]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_workflows__test_the_versions_that_the_package_names() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert named == read(GITHUB / "workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={named[0]}"


def test_templates__are_forms_of_github() -> None:
    forms = sorted(file for file in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config")
    assert [file.stem for file in forms] == ["bug", "feature", "question"]
    for file in forms:
        form = read(file)
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(part["type"] in ("textarea", "input") and part["attributes"]["label"] for part in form["body"])
    assert (GITHUB / "pull_request_template.md").exists()


def test_changelog__its_links_lead_to_pages_of_the_site() -> None:
    """From the root of the repository; a hook of the site rewrites them for its page."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        assert link.startswith("docs/"), link
        assert f" {link.removeprefix('docs/')}\n" in nav, link


def test_citation__has_the_fields_of_its_schema() -> None:
    """Required fields of https://github.com/citation-file-format, version 1.2.0, and no others than it knows."""
    found = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    known = {
        "abstract",
        "authors",
        "cff-version",
        "keywords",
        "license",
        "message",
        "references",
        "title",
        "type",
        "version",
    }
    assert found.keys() <= known
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    for reference in found["references"]:
        assert {"authors", "title", "type"} <= reference.keys()
        assert reference["type"] == "conference-paper"
        assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])
        assert "conference" not in reference or "name" in reference["conference"]


def test_browser__is_found_or_the_script_says_so(tmp_path: Path) -> None:
    """Without a browser and without apt-get it ends with a hint, and the tests go on."""
    for name in ("bash", "id", "env"):
        (tmp_path / name).symlink_to(
            next(path for path in (Path("/usr/bin") / name, Path("/bin") / name) if path.exists())
        )
    done = subprocess.run([str(ROOT / ".ci/browser")], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Chromium is missing" in done.stderr
