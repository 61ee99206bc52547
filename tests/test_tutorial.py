"""docs/tutorial.md, followed from its first line to its last in an empty folder."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from einfuse.cli import main
from einfuse.runtime import backends, ops

matches = runpy.run_path(str(Path(__file__).with_name("test_readme.py")))["matches"]
PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(attn|console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The reference back end computes the same, and needs no compiler for a dozen kernels.
    monkeypatch.setattr(ops, "choose", lambda device, wanted=None: backends.BACKENDS[wanted or "torch"])
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for kind, text in BLOCK.findall(PAGE):
        match kind:
            case "attn":
                Path(text.split("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
            case "console":
                Path("wrong.attn").write_text(Path("relative.attn").read_text().replace("softmax", "sofmax"), encoding="utf-8")
                for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                    line, _, expected = command.partition("\n")
                    program, *argv = shlex.split(line)
                    assert program == "einfuse"
                    main(argv)
                    said = capsys.readouterr()
                    assert matches(expected, said.out + said.err), said.out + said.err
            case "python":
                exec(compile(text, "tutorial.md", "exec"), scope)
