"""The page of a server in a browser without a window."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from gm_discrete.serving.page import PAGE, POLICY
from tests.helpers.servers import Served, served, wait_for

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        if "CI" in os.environ:
            pytest.fail("there is no chromium and no google-chrome to test the page with")
        pytest.skip("there is no chromium and no google-chrome")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must not complain: an error of the script or of the policy fails the test."""
    found = browser.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda line: complaints.append(line.text) if "status of" not in line.text else None)
    requests: list[str] = []
    found.on("request", lambda request: requests.append(request.url))
    yield found
    found.close()
    assert complaints == []
    assert {url.split("/")[2].split(":")[0] for url in requests if url.startswith("http")} <= {"127.0.0.1"}


def shows(page: Any, selector: str, text: str) -> None:
    """Waits for a text, without `eval`, which the policy of the page forbids."""
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(page.locator(selector)).to_contain_text(text, timeout=20_000)


def fill(page: Any, server: Served, text: str, **fields: object) -> None:
    page.goto(f"{server.url}/")
    shows(page, "#model", "tiny")
    page.fill("#text", text)
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#go")


def finished(page: Any) -> str:
    shows(page, "#status", "finished")
    return page.text_content("#output")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("masked") as found:
        yield found


def test_page__fills_gaps_while_one_watches(page: Any, server: Served) -> None:
    server.gate.clear()
    fill(page, server, "ab____[MASK]ba", steps=16, tokens=0, seed=1)
    page.wait_for_selector("#output .mask")
    assert page.locator("#output .mask").count() == 5
    assert page.text_content("#output") == "abba"
    assert page.is_disabled("#go")
    server.gate.set()
    page.wait_for_selector("#output .new")
    text = finished(page)
    assert (text[:2], text[-2:]) == ("ab", "ba")
    assert page.locator("#output .mask").count() == 0
    assert page.locator("#output .made").count() == 5
    assert page.locator("#output .new").count() == 0
    page.click("#use")
    assert page.input_value("#text") == text


def test_page__stops(page: Any, server: Served) -> None:
    server.gate.clear()
    before = server.metric("gm_discrete_cancelled_total")
    fill(page, server, "ab", steps=16)
    page.wait_for_selector("#output .mask")
    page.click("#stop")
    shows(page, "#status", "stopped")
    server.gate.set()
    assert page.is_enabled("#go")
    wait_for(lambda: server.metric("gm_discrete_cancelled_total") == before + 1)


def test_page__stopped_while_it_still_shows_states_does_not_say_finished(page: Any, server: Served) -> None:
    """The server has sent everything; what is shown is an earlier state."""

    def everything(route: Any) -> None:
        drafts: list[list[str | None]] = [[*["a"] * made, *[None] * (240 - made)] for made in range(240)]
        chunks = [{"choices": [{"index": 0, "text": "", "draft": draft}]} for draft in drafts]
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        route.fulfill(status=200, content_type="text/event-stream", body=f"{body}data: [DONE]\n\n")

    page.route("**/v1/completions", everything)
    fill(page, server, "ab")
    page.wait_for_selector("#output .mask")
    page.click("#stop")
    shows(page, "#status", "stopped")
    assert page.locator("#output .mask").count() > 0
    assert page.is_hidden("#use")


def test_page__shows_errors(page: Any, server: Served) -> None:
    fill(page, server, "ab", steps=5000)
    page.wait_for_selector("#error:not([hidden])")
    assert "num_steps=5000" in page.text_content("#error")
    assert page.get_attribute("#error", "role") == "alert"
    page.fill("#steps", "4")
    page.click("#go")
    finished(page)
    assert page.is_hidden("#error")


def test_page__works_with_the_keyboard_alone(page: Any, server: Served) -> None:
    page.goto(f"{server.url}/")
    shows(page, "#model", "tiny")
    page.keyboard.press("Tab")
    page.keyboard.type("ab___ab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tokens"
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    assert finished(page)[:2] == "ab"


def test_page__text_is_never_markup(page: Any, server: Served) -> None:
    """What a model writes or a user types is shown as it is."""

    def evil(route: Any) -> None:
        chunk = {"choices": [{"index": 0, "text": "", "draft": ["<img src=x onerror=document.title='hacked'>"]}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/completions", evil)
    fill(page, server, "ab")
    assert finished(page).startswith("<img")
    assert page.locator("#output img").count() == 0
    assert page.title() == "tiny"


@pytest.mark.parametrize("kind", ["edits", "uniform", "blocks"])
def test_page__shows_other_models(page: Any, kind: str) -> None:
    with served(kind) as server:
        text = "ab___gh" if kind == "edits" else "ab"
        fill(page, server, text, steps=24, tokens=9, seed=2)
        found = finished(page)
        assert found.startswith("ab")
        assert found.endswith("gh") == (kind == "edits")
        assert page.locator("#output .made").count() <= 9


def test_page__asks_for_the_key(page: Any) -> None:
    with served(api_key="sesame") as server:
        page.goto(f"{server.url}/")
        page.wait_for_selector("#key:visible")
        page.fill("#key", "sesame")
        page.fill("#text", "ab")
        page.fill("#steps", "8")
        page.click("#go")
        assert finished(page).startswith("ab")


def test_page__policy_lets_nothing_else_run(server: Served) -> None:
    headers = server.send("GET", "/")[1]
    assert headers["content-security-policy"] == POLICY
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert " on" not in "".join(part for part in PAGE.split("<") if part.startswith(("button", "input", "textarea")))
    assert "http://" not in PAGE
    assert "https://" not in PAGE
    assert "innerHTML" not in PAGE
