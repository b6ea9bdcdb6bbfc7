"""A recipe that is killed wherever it writes, and started again each time, ends as one that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from tests.helpers import forks

pytestmark = pytest.mark.slow

RUN = {
    "max_steps": 12, "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 6, "muon": True,
    "ema_decay": 0.9, "model_options": '{"hidden_dropout": 0.1}', "prompt": "the _it", "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    argv = [*tiny, *(part for name, value in RUN.items() for part in (f"--{name}", str(value)))]
    forks.start("killed_recipe", folder, *argv)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):  # a run goes on from its checkpoints alone
        (folder / "killed" / name).write_bytes(b"")
    again = folder / "again"
    again.mkdir()
    program = [str(forks.ROOT / "recipes/text.py"), *argv, "--output_dir", str(folder / "killed")]
    codes, printed = forks.start("program", again, *program), (again / "log.txt").read_text(encoding="utf-8")
    assert codes == [0], printed[-4000:]
    assert "{'loss'" not in printed  # it has trained all steps before
    return folder


def test_recipe__is_killed_at_every_point_and_starts_again(runs: Path) -> None:
    codes = json.loads((runs / "codes.json").read_text(encoding="utf-8"))
    assert codes.pop("unbroken") == 0, (runs / "log.txt").read_text(encoding="utf-8")[-4000:]
    assert len(codes) >= 10
    assert codes == dict.fromkeys(codes, -9), (runs / "log.txt").read_text(encoding="utf-8")[-4000:]


def content(file: Path) -> list[bytes]:
    """The bytes of a file; of a picture those of its frames, whose palette each process orders in its own way."""
    if file.suffix != ".gif":
        return [file.read_bytes()]
    with Image.open(file) as picture:
        return [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(picture)]


def test_recipe__killed_and_started_again_ends_as_the_unbroken_one(runs: Path) -> None:
    unbroken, killed = runs / "unbroken", runs / "killed"
    names = {str(file.relative_to(unbroken)) for file in unbroken.rglob("*") if file.is_file()}
    assert {str(file.relative_to(killed)) for file in killed.rglob("*") if file.is_file()} == names
    assert {name.split("/")[0] for name in names if "/" in name} == {"checkpoint-10", "checkpoint-12"}
    for name in sorted(names):
        if name.endswith((".safetensors", "metrics.json", ".txt", ".gif", "run.json", "tokenizer.json")):
            assert content(killed / name) == content(unbroken / name), name
