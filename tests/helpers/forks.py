"""A process that has imported the library and forks: what starts in a fork need not import it again, for seven seconds.

    python -m tests.helpers.forks

reads jobs from its input and answers each with a line. Every worker of the tests starts one, when it first needs it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = (
    "killed_recipe", "program", "sft_runs", "sharded_backbone", "sharded_strings", "sharded_training",
    "two_equal_processes", "two_processes",
)  # fmt: skip
"""What it starts: the `main` of these modules of this folder."""


@functools.cache
def parent() -> subprocess.Popen[str]:
    """It ends with its input, which ends with this process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": tempfile.mkdtemp()}
    command = [sys.executable, "-m", "tests.helpers.forks"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def start(module: str, folder: Path, *arguments: str, processes: int = 1) -> list[int]:
    """Runs `main(folder, *arguments)` of the module, and returns the exit codes; what it prints is in `folder/log.txt`.

    Args:
        processes: how many run it, with the environment that torchrun would give them; they talk through gloo.
    """
    process = parent()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([module, str(folder), arguments, processes]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def ranks(processes: int) -> list[dict[str, str]]:
    """The environment of each of several processes; of one alone nothing."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    every = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    every |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [every | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]


def fork(module: str, folder: Path, arguments: list[str], environment: dict[str, str]) -> int:
    """The id of a new process, the head of a group of its own, that runs the module."""
    if process := os.fork():
        return process
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        with (folder / "log.txt").open("a", encoding="utf-8") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        importlib.import_module(f"tests.helpers.{module}").main(folder, *arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(processes: list[int], seconds: float = 180) -> list[int]:
    """The exit codes of the processes; when one has failed, or it takes too long, the others are killed."""
    waiting, deadline, codes = set(processes), time.monotonic() + seconds, dict[int, int]()
    while waiting:
        for process in list(waiting):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                waiting.remove(process)
                codes[process] = os.waitstatus_to_exitcode(status)
                deadline = deadline if status == 0 else 0
        if time.monotonic() > deadline:
            for process in waiting:
                os.killpg(process, signal.SIGKILL)  # with the processes that it has started
            deadline = float("inf")
        time.sleep(0.01)
    return [codes[process] for process in processes]


def main() -> None:
    for module in MODULES:
        importlib.import_module(f"tests.helpers.{module}")
    for line in sys.stdin:
        module, folder, arguments, processes = json.loads(line)
        codes = wait([fork(module, Path(folder), arguments, environment) for environment in ranks(processes)])
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
