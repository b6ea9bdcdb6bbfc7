"""Starts a script of this folder in two processes that talk through gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(script: str, folder: Path, *arguments: str) -> Path:
    """Runs `script folder *arguments` and returns the file with what it printed; after three minutes it is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as stream:
        run = subprocess.Popen(
            [*command, str(Path(__file__).with_name(script)), str(folder), *arguments],
            env=environment, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
        try:
            run.wait(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # with the processes that it has started
            run.wait()
    return log
