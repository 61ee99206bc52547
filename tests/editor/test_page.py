"""What the playground asks: answers are plain JSON of a text, without torch, and with the arrays of the page as with numpy."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from triton.runtime.interpreter import InterpretedFunction

from einfuse._editor import page

ROOT = Path(__file__).parents[2]
ARRAYS = ROOT / "playground" / "python"
WINDOW = """attention near(window: int = 100) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where j <= i and i - j < window
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


def ask(question: str, **rest: Any) -> Any:
    return json.loads(page.answer(json.dumps({"question": question, **rest})))


def test_every_question_has_a_plain_answer() -> None:
    for question in page.QUESTIONS:
        text = {} if question == "library" else {"text": WINDOW}
        backend = {"backend": "cpu"} if question == "source" else {}
        assert "error" not in ask(question, **text, **backend), question


def test_a_fault_has_its_place_and_what_mends_it() -> None:
    wrong = WINDOW.replace("softmax", "sofmax")
    (fault,) = ask("check", text=wrong)["faults"]
    assert (fault["line"], fault["column"]) == (7, wrong.split("\n")[6].index("sofmax") + 1)
    assert "softmax" in fault["hint"]
    fix = fault["fix"]
    assert wrong[: fix["start"]] + fix["text"] + wrong[fix["stop"] :] == WINDOW
    assert ask("check", text=WINDOW, fuse=True)["faults"] == []
    assert [h["words"] for h in ask("check", text=WINDOW)["hints"]] == ["[i, j]"]


@pytest.mark.parametrize("text", ["", "attention", "attention a over b { }", '"""', "\u20ac\U0001f600"])
def test_no_text_is_more_than_refused(text: str) -> None:
    for question in page.QUESTIONS:
        if question != "library":
            found = ask(question, text=text, **({"backend": "torch"} if question == "source" else {}))
            assert found.get("error") or found.get("faults") or question in ("formatted", "about")


def test_passes_are_those_of_the_compiler() -> None:
    stages = {s["after"]: s["text"] for s in ask("stages", text=WINDOW)["stages"]}
    assert next(iter(stages)) == "build"
    assert list(stages)[-1] == "mask_ranges"
    assert "carry" not in stages["canonicalise"]
    assert "carry" in stages["online_fuse"]
    (over,) = ask("fused", text=WINDOW)["passes"]
    assert over["counted"] == "3 passes -> 1"
    assert {d["proof"] for d in over["decisions"]} <= {"proven", "exact"}


@pytest.mark.parametrize(("window", "tile"), [(1, 32), (100, 64), (300, 64)])
def test_tiles_follow_parameters_and_sizes(window: int, tile: int) -> None:
    found = ask("tiles", text=WINDOW, params={"window": window}, queries=512, keys=256, tile=tile)
    wanted = [[kind(r, c, tile, window, 512, 256) for c in range(256 // tile)] for r in range(512 // tile)]
    assert found["kind"] == wanted


def kind(r: int, c: int, tile: int, window: int, queries: int, keys: int) -> int:
    """Of the tile, told from its points."""
    live = {0 <= i - j < window for i in range(r * tile, (r + 1) * tile) for j in range(c * tile, (c + 1) * tile)}
    return 1 if len(live) == 2 else 2 * live.pop()


def test_an_attention_without_a_mask_has_no_picture() -> None:
    assert ask("tiles", text=WINDOW.replace(" where j <= i and i - j < window", ""))["kind"] is None


def test_cost_grows_with_the_tiles_that_are_live() -> None:
    def products(window: int) -> float:
        found: float = ask("cost", text=WINDOW, params={"window": window}, queries=1024, heads=2)["kernels"][0]["products"]
        return found

    assert products(64) < products(512) < products(4096)
    live = ask("tiles", text=WINDOW, params={"window": 4096}, queries=1024)["kind"]
    share = sum(k > 0 for row in live for k in row) / 256
    assert products(4096) == pytest.approx(
        2 * 2 * 2 * 64 * 1024 * 1024 * share
    )  # two products of 64 wide for every pair, of two heads


@pytest.mark.parametrize(("name", "launches"), [("sliding_window", 1), ("document", 1), ("gla", None)])
def test_kernels_are_shown_with_launches(
    name: str, launches: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor and number that a launch reads is there. A scan has several, which share tensors: none is shown."""
    text = next(s["text"] for s in page.library()["specs"] if s["name"] == name)
    found = ask("source", text=text, backend="triton")
    assert ("launched" in found) == (launches is not None)
    if launches is None:
        return
    seen: list[int] = []
    monkeypatch.setattr(InterpretedFunction, "__getitem__", lambda self, grid: lambda *given, **named: seen.append(len(given)))
    file = tmp_path / "shown.py"
    file.write_text(found["launched"])
    runpy.run_path(str(file))
    assert len(seen) == launches


def test_weights_are_those_of_softmax() -> None:
    found = ask("weights", text=WINDOW, params={"window": 3})
    assert found["of"] == ["v"]
    for i, row in enumerate(found["values"]):
        assert sum(row) == pytest.approx(1)
        assert [j for j, x in enumerate(row) if x > 0] == list(range(max(0, i - 2), i + 1))


def test_what_has_no_weights_says_so() -> None:
    assert "no input of" in ask("weights", text=WINDOW.replace("in v[b, h, j, e]", "in v[b, h, i, e]"))["error"]


_WITHOUT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy
from einfuse._editor import page
specs = {s["name"]: s["text"] for s in page.library()["specs"]}
for name in sys.argv[1:]:
    for question in ("fused", "tiles"):
        print(name, page.answer(json.dumps({"question": question, "text": specs[name]})))
print(numpy.__file__, file=sys.stderr)
"""


@pytest.mark.slow
def test_the_arrays_of_the_page_decide_as_numpy_does(tmp_path: Path) -> None:
    """A mask with divisions; a normaliser whose proof samples."""
    names = ("neighbourhood_2d", "softpick_sink")
    found = []
    for number, path in enumerate(([], [str(ARRAYS)])):
        paths = os.pathsep.join([*path, os.environ.get("PYTHONPATH", ""), str(ROOT / "src")])
        env = os.environ | {"EINFUSE_CACHE": str(tmp_path / str(number)), "PYTHONPATH": paths}
        run = subprocess.run([sys.executable, "-c", _WITHOUT, *names], env=env, capture_output=True, text=True, check=True)
        assert (str(ARRAYS) in run.stderr) == bool(path)
        found.append(run.stdout)
    assert found[0] == found[1]
    assert found[0].count("\n") == 2 * len(names)
