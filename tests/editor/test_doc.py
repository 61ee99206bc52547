"""What docs/editor.md tells a reader to write."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from einfuse.cli import parser

TEXT = (Path(__file__).parents[2] / "docs" / "editor.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_settings_start_the_server() -> None:
    (helix,), (neovim,) = map(tomllib.loads, blocks("toml")), blocks("lua")
    server = helix["language-server"]["einfuse"]
    (language,) = helix["language"]
    assert language["language-servers"] == ["einfuse"]
    assert language["file-types"] == ["attn"]
    found = re.search(r'cmd = \{ "einfuse", "(\w+)" \}', neovim)
    assert found is not None
    for command in ([server["command"], *server["args"]], ["einfuse", found[1]]):
        assert command[0] == "einfuse"
        assert parser().parse_args(command[1:]).run == "lsp:lsp"


def test_the_cells_run(shell: Any) -> None:
    for cell in blocks("ipython"):
        shell.run_cell(cell).raise_error()
    assert shell.user_ns["near"].cascade.inputs[-1].default == 32


def test_tasks_are_commands_that_there_are() -> None:
    (tasks,) = map(json.loads, blocks("json"))
    for task in tasks:
        assert task["command"] == "einfuse"
        assert parser().parse_args(task["args"]).run in ("texts:check", "texts:fmt")
