"""`einfuse lsp` as an editor meets it: one process, every feature."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from lsprotocol import types as lsp
from mutated import broken
from pygls.lsp.client import LanguageClient

T = TypeVar("T")
SPEC = '''use shapes
"""A window. \U0001d4b6 is one character and two units of the protocol."""
attention near(window: int = 64) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where shapes.band(i, j, window)  # \U0001d4b6
  o = sum[j](softmax[j](s) * v)
  out o
}
'''
SHAPES = "def band(i, j, w) = 0 <= i - j < w\n"
FINAL = """attention final over b {
  rank i: query; rank d: feature
  in k[b, i, d]
  scan i {
    state S[d] = S + k
    o = S * 2.0
  }
  u[d] = S * 2.0
  out o, u
}
"""
SERVER = """
from einfuse import cli
from einfuse.runtime import derived
derived.fused = derived.scheduled = derived.derivations = None  # a key stroke would wait for them: another process fuses
cli.main(["lsp", "--stdio"])
"""
WRONG = SPEC.replace("* v)", "* vv)")


class Editor:
    """A client with a loop of its own; the newest faults of every text."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = LanguageClient("tests", "1")
        self.faults: dict[str, list[lsp.Diagnostic]] = {}
        self.folder = folder
        self.count = 0

        @self.client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)  # type: ignore[untyped-decorator]  # pygls does not type it
        def published(params: lsp.PublishDiagnosticsParams) -> None:
            self.faults[params.uri] = list(params.diagnostics)

    def run(self, call: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 60))

    def open(self, name: str, text: str) -> str:
        uri = (self.folder / name).as_uri()
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(lsp.TextDocumentItem(uri, "attn", 1, text)))
        return uri

    def change(self, uri: str, version: int, text: str) -> None:
        document = lsp.VersionedTextDocumentIdentifier(version, uri)
        self.client.text_document_did_change(
            lsp.DidChangeTextDocumentParams(document, [lsp.TextDocumentContentChangeWholeDocument(text)])
        )

    def until(self, true: Callable[[], Any]) -> None:
        """Waits for what the server says by itself."""

        async def wait() -> None:
            while not true():
                await asyncio.sleep(0.01)

        self.run(wait())


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    folder = tmp_path_factory.mktemp("specs")
    (folder / "shapes.attn").write_text(SHAPES, encoding="utf-8")
    (folder / "near.attn").write_text(SPEC, encoding="utf-8")
    made = Editor(folder)
    made.run(made.client.start_io(sys.executable, "-c", SERVER))
    about = lsp.InitializeParams(lsp.ClientCapabilities(), root_uri=folder.as_uri())
    made.run(made.client.initialize_async(about))
    made.client.initialized(lsp.InitializedParams())
    yield made
    made.run(made.client.shutdown_async(None))
    made.client.exit(None)
    made.run(made.client.stop())  # type: ignore[no-untyped-call]  # pygls does not type it
    made.loop.close()


@pytest.fixture
def uri(editor: Editor) -> str:
    """The good spec, open and looked at."""
    found = editor.open("near.attn", SPEC)
    editor.until(lambda: found in editor.faults)
    return found


def position(text: str, name: str) -> lsp.Position:
    """In units of the protocol, which are those of UTF-16."""
    before = text[: text.index(name)]
    line = before.rpartition("\n")[2]
    return lsp.Position(before.count("\n"), len(line.encode("utf-16-le")) // 2)


def covered(text: str, range_: lsp.Range) -> str:
    """The text of a range in one line."""
    units = text.split("\n")[range_.start.line].encode("utf-16-le")
    assert range_.start.line == range_.end.line
    return units[2 * range_.start.character : 2 * range_.end.character].decode("utf-16-le")


def test_faults_and_their_hints(editor: Editor, uri: str) -> None:
    assert editor.faults[uri] == []
    editor.change(uri, 2, WRONG)
    editor.until(lambda: editor.faults[uri])
    (fault,) = editor.faults[uri]
    assert covered(WRONG, fault.range) == "vv"
    assert fault.message.startswith("the name `vv` is not known here\ndid you mean `v`?")
    asked = lsp.CodeActionParams(lsp.TextDocumentIdentifier(uri), fault.range, lsp.CodeActionContext([fault]))
    (action,) = editor.run(editor.client.text_document_code_action_async(asked)) or []
    assert isinstance(action, lsp.CodeAction)
    assert action.edit is not None
    assert action.edit.changes is not None
    (edit,) = action.edit.changes[uri]
    assert (covered(WRONG, edit.range), edit.new_text) == ("vv", "v")
    editor.change(uri, 3, SPEC)
    editor.until(lambda: not editor.faults[uri])


def test_what_only_a_pass_finds_is_said_when_the_text_stands_still(editor: Editor) -> None:
    uri = editor.open("final.attn", FINAL)
    editor.until(lambda: editor.faults.get(uri))
    assert covered(FINAL, editor.faults[uri][0].range) == "u"


def test_formatting(editor: Editor, uri: str) -> None:
    asked = lsp.DocumentFormattingParams(lsp.TextDocumentIdentifier(uri), lsp.FormattingOptions(2, True))
    (edit,) = editor.run(editor.client.text_document_formatting_async(asked)) or []
    assert edit.new_text.count("\n") == SPEC.count("\n") + 3  # inputs in lines of their own, a blank one before the docstring
    assert edit.range.start == lsp.Position(0, 0)
    editor.change(uri, 4, edit.new_text)
    again = editor.run(editor.client.text_document_formatting_async(asked))
    assert list(again or []) == []
    editor.change(uri, 5, "attention")
    broken = editor.run(editor.client.text_document_formatting_async(asked))
    assert list(broken or []) == []


def test_definitions_and_references_across_files(editor: Editor, uri: str) -> None:
    document = lsp.TextDocumentIdentifier(uri)
    asked = lsp.DefinitionParams(document, position(SPEC, "shapes.band"))
    found = editor.run(editor.client.text_document_definition_async(asked))
    assert isinstance(found, lsp.Location)
    assert found.uri == (editor.folder / "shapes.attn").as_uri()
    assert covered(SHAPES, found.range) == "band"
    shapes = editor.open("shapes.attn", SHAPES)
    uses = lsp.ReferenceParams(lsp.ReferenceContext(True), lsp.TextDocumentIdentifier(shapes), position(SHAPES, "band"))
    places = editor.run(editor.client.text_document_references_async(uses)) or []
    assert [(p.uri, covered(SHAPES if p.uri == shapes else SPEC, p.range)) for p in places] == [
        (shapes, "band"),
        (uri, "shapes.band"),
    ]


def test_hovering(editor: Editor, uri: str) -> None:
    asked = lsp.HoverParams(lsp.TextDocumentIdentifier(uri), position(SPEC, "o = sum"))
    found = editor.run(editor.client.text_document_hover_async(asked))
    assert found is not None
    assert isinstance(found.contents, lsp.MarkupContent)
    for words in ("o[i, e]: float", "as elaborated", "after the passes", "proven"):
        assert words in found.contents.value


def test_inlay_hints_are_inferred_ranks(editor: Editor, uri: str) -> None:
    whole = lsp.Range(lsp.Position(0, 0), lsp.Position(20, 0))
    asked = lsp.InlayHintParams(lsp.TextDocumentIdentifier(uri), whole)
    found = editor.run(editor.client.text_document_inlay_hint_async(asked)) or []
    assert [(x.position.line, x.label) for x in found] == [(5, "[i, j]"), (6, "[i, e]")]


def test_a_lens_says_passes_and_tiles(editor: Editor, uri: str) -> None:
    asked = lsp.CodeLensParams(lsp.TextDocumentIdentifier(uri))
    (found,) = editor.run(editor.client.text_document_code_lens_async(asked)) or []
    assert found.command is not None
    assert found.command.title == "3 passes -> 1 over j, 12 % of tiles live at 1024"
    assert covered(SPEC, found.range) == "near"


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=broken())
def test_broken_texts_go_through_the_server(editor: Editor, text: str) -> None:
    editor.count += 1
    uri = editor.open(f"broken_{editor.count}.attn", text)
    editor.until(lambda: uri in editor.faults)
    lines = text.split("\n")
    for fault in editor.faults[uri]:
        for end in (fault.range.start, fault.range.end):
            assert end.line < len(lines)
            assert end.character <= len(lines[end.line].encode("utf-16-le")) // 2
    asked = lsp.InlayHintParams(lsp.TextDocumentIdentifier(uri), lsp.Range(lsp.Position(0, 0), lsp.Position(len(lines), 0)))
    editor.run(editor.client.text_document_inlay_hint_async(asked))
    editor.client.text_document_did_close(lsp.DidCloseTextDocumentParams(lsp.TextDocumentIdentifier(uri)))
