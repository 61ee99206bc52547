"""The extension for VS Code: a zip that holds everything its manifest names."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "editor" / "vscode"


def test_the_archive_holds_what_the_manifest_names(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("package", FOLDER / "package.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    first, again = tmp_path / "a.vsix", tmp_path / "b.vsix"
    made.pack(first)
    made.pack(again)
    assert first.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
        about = json.loads(archive.read("extension/package.json"))
        assert b'Id="einfuse"' in archive.read("extension.vsixmanifest")
    (language,), (grammar,) = about["contributes"]["languages"], about["contributes"]["grammars"]
    for file in (about["main"], language["configuration"], grammar["path"]):
        assert f"extension/{file.removeprefix('./')}" in names
    assert "[Content_Types].xml" in names
    assert "extension/package.py" not in names
    assert language["extensions"] == [".attn"]


def test_the_extension_starts_the_command_that_there_is() -> None:
    about = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
    assert about["contributes"]["configuration"]["properties"]["einfuse.command"]["default"] == ["einfuse", "lsp"]
    locked = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))
    assert locked["packages"][""]["dependencies"] == about["dependencies"]
