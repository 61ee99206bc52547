"""The built page in a browser, and the command that serves it."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import urllib.request
import webbrowser
import zlib
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from einfuse._cli.playground import PLACES, built, server
from einfuse.cli import main
from einfuse.ir import EinfuseError

PAGE = PLACES[-1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WRONG, RIGHT = "sofmax", "softmax"


@pytest.fixture
def address(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server of the folder that a test asks for."""
    with server(getattr(request, "param", tmp_path), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://localhost:{serving.server_address[1]}/"
        serving.shutdown()
        thread.join()


def test_the_server_calls_modules_and_wasm_what_browsers_take(address: str, tmp_path: Path) -> None:
    for name, kind in (("a.mjs", "text/javascript"), ("b.wasm", "application/wasm"), ("index.html", "text/html")):
        (tmp_path / name).write_text("x")
        with urllib.request.urlopen(address + name) as answer:
            assert answer.headers["Content-Type"] == kind


def test_a_page_that_is_not_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="`make playground` builds it"):
        built(tmp_path)
    with server(tmp_path, 0) as serving, pytest.raises(EinfuseError, match="--port names another"):
        server(tmp_path, serving.server_address[1])


@pytest.mark.parametrize("options", [["--no-open"], []])
def test_the_command_serves_until_it_is_interrupted(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(serving: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    opened: list[str] = []
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    (tmp_path / "index.html").touch()
    assert main(["playground", *options, "--port", "0", "--folder", str(tmp_path)]) == 0
    address = capsys.readouterr().out.split()[0]
    assert address.startswith("http://localhost:")
    assert opened == ([] if options else [address])


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in a browser. Whatever it says on its console fails the test."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser: make browser")
    if not (PAGE / "index.html").is_file():
        pytest.skip("the page is not built: make playground")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: make browser")
    said: list[str] = []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        opened.set_default_timeout(120_000)
        opened.on("console", lambda m: said.append(m.text))
        opened.on("pageerror", lambda e: said.append(str(e)))
        opened.goto(address)
        opened.wait_for_selector("#faults li.good")
        yield opened
        browser.close()
    assert not said


def write(page: Any, text: str) -> None:
    page.click(".cm-content")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(text)


def picture(page: Any, view: str = "tiles") -> str:
    drawn: str = page.evaluate(f"document.querySelector('#{view} canvas').toDataURL()")
    return drawn


def changed(page: Any, view: str, before: str) -> str:
    page.wait_for_function("([v, b]) => document.querySelector(`#${v} canvas`).toDataURL() !== b", arg=[view, before])
    return picture(page, view)


on_the_page = pytest.mark.parametrize("address", [PAGE], indirect=True)


@pytest.mark.slow
@on_the_page
def test_a_wrong_spec_shows_a_caret_and_is_mended(page: Any) -> None:
    write(page, spec().replace(RIGHT, WRONG))
    caret = page.wait_for_selector("#faults .caret").inner_text().split("\n")
    assert caret[0][caret[1].index("^") :].startswith(WRONG)
    assert "did you mean" in page.inner_text("#faults .hint")
    page.click("#faults .fix")
    page.wait_for_selector("#faults li.good")
    assert WRONG not in page.inner_text(".cm-content")


@pytest.mark.slow
@on_the_page
def test_a_slider_changes_the_picture(page: Any) -> None:
    page.wait_for_function("document.querySelector('#tiles .said').textContent.includes('live')")
    first = picture(page)
    page.focus("#params input[name=window]")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    second = changed(page, "tiles", first)
    page.focus("#sizes input[name=queries]")
    page.keyboard.press("ArrowLeft")
    changed(page, "tiles", second)


@pytest.mark.slow
@on_the_page
def test_every_view_is_reached_by_the_keyboard(page: Any) -> None:
    page.focus("#tab-tiles")
    shown = {
        "weights": "#weights .said:has-text('unit vectors')",
        "stages": "#stages pre:has-text('cascade')",
        "fused": "#fused td:has-text('proven')",
        "source": "#source pre:has-text('@triton.jit')",
        "cost": "#cost td:has-text('us')",
    }
    for view, selector in shown.items():
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(selector)
        assert page.get_attribute(f"#tab-{view}", "aria-selected") == "true"
        if view == "source":
            page.wait_for_selector("#explore[href]")
            state = base64.b64decode(unquote(page.get_attribute("#explore", "href").rpartition("/")[2]))
            (session,) = json.loads(zlib.decompress(state))["sessions"]
            assert session["source"].startswith(page.inner_text("#source pre").rstrip())
    page.click("#tab-stages")
    before = page.inner_text("#stages pre")
    page.focus("#stages input")
    page.keyboard.press("End")
    assert page.inner_text("#stages output") == "mask_ranges"
    assert page.inner_text("#stages pre") != before


@pytest.mark.slow
@on_the_page
def test_a_link_holds_the_text(page: Any) -> None:
    write(page, spec().replace("sliding_window", "mine"))
    page.wait_for_selector("#faults li.good")
    page.click("#share")
    page.wait_for_function("location.hash.length > 50")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("#faults li.good")
    assert "attention mine" in page.inner_text(".cm-content")


@pytest.mark.slow
@on_the_page
def test_it_is_read_on_a_telephone_and_in_the_dark(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def spec() -> str:
    from einfuse.runtime.specs import library

    return library()["sliding_window"].read_text(encoding="utf-8")
