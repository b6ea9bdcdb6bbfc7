"""The command: its arguments, a process of its own, and what it needs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from gm_discrete.serving import Settings, serve, server
from gm_discrete.serving.command import KEY, add_arguments, run
from tests.helpers.servers import model_and_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "little"
    model, tokenizer = model_and_tokenizer()
    model.save_pretrained(found)
    tokenizer.save_pretrained(found)
    return found


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_command__arguments_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda folder, *options, **more: seen.append((folder, *options, more)))
    monkeypatch.setenv(KEY, "from the environment")
    run(parsed("a/model"))
    words = "--port 1 --max-length 7 --timeout 2.5 --api-key mine --name x --dtype float16"
    run(parsed("a/model", *words.split()))
    plain = {"device": None, "dtype": None, "log_level": "info"}
    given = Settings(port=1, max_length=7, timeout=2.5, api_key="mine")
    assert seen == [
        ("a/model", Settings(api_key="from the environment"), None, plain),
        ("a/model", given, "x", {**plain, "dtype": "float16"}),
    ]


@pytest.mark.parametrize("name", ["nofolder", "./no/folder"])
def test_command__a_folder_that_is_not_there_is_refused_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_: pytest.fail("this asks the hub"))
    monkeypatch.setitem(sys.modules, "gm_discrete.serving.server", None)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        run(parsed(name))
    with pytest.raises(FileNotFoundError, match="is no folder"):
        serve(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70000), ("max_batch", 0), ("max_queue", 0), ("timeout", 0), ("timeout", float("nan")), ("max_length", 0),
     ("api_key", " "), ("host", ""), ("max_body", -1)],
)  # fmt: skip
def test_settings__refuse_wrong_values(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_settings__do_not_show_the_key() -> None:
    assert "sesame" not in repr(Settings(api_key="sesame"))


def test_serve__names_the_extra_that_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r'pip install "gm-discrete\[serve\]"'):
        serve(folder)


def test_serve__refuses_models_of_other_states(tmp_path: Path) -> None:
    from gm_discrete import GaussianPath, GMConfig, GMModel
    from gm_discrete.serving import application

    _, tokenizer = model_and_tokenizer()
    model = GMModel(
        GMConfig(path=GaussianPath(num_channels=2), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="token sequences"):
        application(model, tokenizer)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_serve__warns_of_a_server_that_is_open_to_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self: None)
    serve(folder, Settings(host=host), device="cpu", dtype="bfloat16")
    assert ("api_key" in caplog.text) == warned
    caplog.clear()
    serve(folder, Settings(host=host, api_key="sesame"), device="cpu")
    assert "api_key" not in caplog.text


@pytest.mark.slow
def test_command__imports_no_server_until_it_runs() -> None:
    program = "import sys, gm_discrete.serving.command; print({'fastapi', 'uvicorn', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_command__finishes_running_requests_when_it_is_told_to_end(folder: Path) -> None:
    program = (
        "import argparse; from gm_discrete.serving.command import add_arguments, run; p = argparse.ArgumentParser(); "
        "add_arguments(p); run(p.parse_args())"
    )
    words = [sys.executable, "-c", program, str(folder), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, KEY: "sesame-open"}
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        assert found, lines
        rest = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        rest.start()
        body = {"prompt": "ab", "max_tokens": 25, "num_steps": 200, "corrector": "detailed_balance", "stream": True}
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame-open"}
        request = urllib.request.Request(f"{found[1]}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            first = answer.readline()
            process.send_signal(signal.SIGTERM)
            text = (first + answer.read()).decode()
        assert text.endswith("data: [DONE]\n\n")
        assert "error" not in text
        assert process.wait(60) in (0, -signal.SIGTERM)
        rest.join(30)
        assert "sesame-open" not in "".join(lines)
        assert "Traceback" not in "".join(lines)
    finally:
        process.kill()
        process.wait()
