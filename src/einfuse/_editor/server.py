"""`einfuse lsp`: the functions of this folder for editors that speak the Language Server Protocol. It adapts, and knows nothing itself."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path, to_fs_path

from einfuse import dsl
from einfuse._editor import hover as hovering
from einfuse._editor import inside, names
from einfuse._editor.aside import Aside
from einfuse._editor.document import Document
from einfuse._editor.faults import faults, quick_faults
from einfuse._editor.fixes import fix
from einfuse.ir import Span, SpecError

IDLE = 0.5
"""Seconds without a key stroke after which a text is fused as well."""
MOST_FILES = 1000
"""Files of a folder in which uses of a name are looked for."""


def _version() -> str:
    try:
        return version("einfuse")
    except PackageNotFoundError:
        return "0"


server = LanguageServer("einfuse", _version(), text_document_sync_kind=lsp.TextDocumentSyncKind.Full)
aside = Aside()
"""Runs whatever fuses."""


@functools.lru_cache(32)
def _read(text: str, file: str, folder: Path | None) -> Document:
    return Document(text, file, () if folder is None else (folder,))


def _document(uri: str) -> Document:
    """The text of a document as it stands in the editor; what was worked out of it is kept."""
    source = server.workspace.get_text_document(uri).source
    path = to_fs_path(uri) if uri.startswith("file:") else None
    return _read(source, path or uri, Path(path).parent if path else None)


class _Places:
    """Between our places, in characters from 1, and those of the client, in units of its own from 0."""

    def __init__(self, uri: str, text: str) -> None:
        self.lines = [f"{x}\n" for x in text.split("\n")]  # as the parser counts them
        self.codec = server.workspace.get_text_document(uri).position_codec

    def here(self, position: lsp.Position) -> tuple[int, int]:
        found = self.codec.position_from_client_units(self.lines, position)
        return found.line + 1, found.character + 1

    def position(self, line: int, column: int) -> lsp.Position:
        line = min(max(line, 1), len(self.lines))
        length = len(self.lines[line - 1].rstrip("\r\n"))
        there = lsp.Position(line - 1, min(max(column, 1) - 1, length))
        return self.codec.position_to_client_units(self.lines, there)

    def range(self, span: Span) -> lsp.Range:
        """A span that goes over several lines ends with its first one: a squiggle under one line says where to look."""
        return lsp.Range(self.position(span.line, span.column), self.position(span.line, span.column + span.length))

    def between(self, start: int, stop: int) -> lsp.Range:
        """The range of the characters from one offset to another."""
        return lsp.Range(*(self.position(*self._place(n)) for n in (start, stop)))

    def _place(self, n: int) -> tuple[int, int]:
        for line, text in enumerate(self.lines, 1):
            if n < len(text) or line == len(self.lines):
                return line, n + 1
            n -= len(text)
        raise AssertionError("there is a last line")


# -- faults --------------------------------------------------------------------------------------------------------------------------


def _publish(uri: str, document: Document, errors: Iterable[SpecError], number: int | None) -> None:
    places = _Places(uri, document.text)
    found = []
    for e in errors:
        here = e.loc is None or e.loc.file == document.file
        span = e.loc if e.loc is not None and here else Span(document.file, 1, 1)
        words = e.message if here else str(e)
        found.append(
            lsp.Diagnostic(
                places.range(span),
                f"{words}\n{e.hint}" if e.hint else words,
                severity=lsp.DiagnosticSeverity.Error,
                source="einfuse",
            )
        )
    server.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, found, number))


async def _check(uri: str, wait: float) -> None:
    """Faults at once, and once the text stands still those that only fusing finds."""
    document, number = _document(uri), server.workspace.get_text_document(uri).version
    _publish(uri, document, quick_faults(document.text, document.file, document.search), number)
    await asyncio.sleep(wait)
    errors = await asyncio.to_thread(_all_faults, uri, number, document)
    if _is_current(uri, number):
        _publish(uri, document, errors, number)
        gc.collect()


def _all_faults(uri: str, number: int | None, document: Document) -> list[SpecError]:
    """Those that fusing finds too, unless the text changed before it could begin."""
    with aside.turn:
        return aside.ask(faults, document.text, document.file, document.search) if _is_current(uri, number) else []


def _is_current(uri: str, number: int | None) -> bool:
    return uri in server.workspace.text_documents and server.workspace.get_text_document(uri).version == number


@server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
async def opened(params: lsp.DidOpenTextDocumentParams) -> None:
    await _check(params.text_document.uri, 0)


@server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
async def changed(params: lsp.DidChangeTextDocumentParams) -> None:
    await _check(params.text_document.uri, IDLE)


@server.feature(lsp.TEXT_DOCUMENT_DID_SAVE)
async def saved(params: lsp.DidSaveTextDocumentParams) -> None:
    """Another file may use what was saved: every open text is looked at again."""
    _read.cache_clear()
    await asyncio.gather(*(_check(uri, 0) for uri in server.workspace.text_documents))


@server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
def closed(params: lsp.DidCloseTextDocumentParams) -> None:
    server.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(params.text_document.uri, []))


@server.feature(lsp.TEXT_DOCUMENT_CODE_ACTION, lsp.CodeActionOptions(code_action_kinds=[lsp.CodeActionKind.QuickFix]))
def actions(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    uri = params.text_document.uri
    document = _document(uri)
    places = _Places(uri, document.text)
    out = []
    for error in quick_faults(document.text, document.file, document.search):
        found = fix(error, document.text) if error.loc is not None and error.loc.file == document.file else None
        if found is None or error.loc is None or not _meet(places.range(error.loc), params.range):
            continue
        edit = lsp.WorkspaceEdit({uri: [lsp.TextEdit(places.between(found.start, found.stop), found.text)]})
        out.append(lsp.CodeAction(found.title, kind=lsp.CodeActionKind.QuickFix, edit=edit, is_preferred=True))
    return out


def _meet(a: lsp.Range, b: lsp.Range) -> bool:
    return not (a.end < b.start or b.end < a.start)


# -- the text ------------------------------------------------------------------------------------------------------------------------


@server.feature(lsp.TEXT_DOCUMENT_FORMATTING)
def formatting(params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit]:
    document = _document(params.text_document.uri)
    try:
        text = dsl.format_text(document.text, document.file)
    except SpecError:
        return []  # a fault says where
    if text == document.text:
        return []
    return [lsp.TextEdit(_Places(params.text_document.uri, document.text).between(0, len(document.text)), text)]


@server.feature(lsp.TEXT_DOCUMENT_DEFINITION)
def definition(params: lsp.DefinitionParams) -> lsp.Location | None:
    uri = params.text_document.uri
    document = _document(uri)
    found = names.at(document.names, *_Places(uri, document.text).here(params.position))
    return None if found is None or found.target is None else _location(uri, document, found.target)


@server.feature(lsp.TEXT_DOCUMENT_REFERENCES)
def references(params: lsp.ReferenceParams) -> list[lsp.Location]:
    uri = params.text_document.uri
    document = _document(uri)
    if document.module is None:
        return []
    line, column = _Places(uri, document.text).here(params.position)
    found = names.references(document.module, line, column, document.search, _files(document))
    kept = found if params.context.include_declaration else found[1:]
    return [_location(uri, document, x) for x in kept]


def _files(document: Document) -> list[Path]:
    """The texts that may use what this one defines: those beside it, and those of the folders that are open."""
    folders = [Path(p) for f in server.workspace.folders.values() if (p := to_fs_path(f.uri))]
    found = (p for folder in (*document.search, *folders) for p in sorted(folder.rglob("*.attn")))
    return list(dict.fromkeys(p for _, p in zip(range(MOST_FILES), found, strict=False)))


def _location(uri: str, document: Document, span: Span) -> lsp.Location:
    if span.file == document.file:
        return lsp.Location(uri, _Places(uri, document.text).range(span))
    there = from_fs_path(span.file) or uri
    return lsp.Location(there, _Places(there, server.workspace.get_text_document(there).source).range(span))


# -- what is shown beside it ---------------------------------------------------------------------------------------------------------


@server.feature(lsp.TEXT_DOCUMENT_HOVER)
@server.thread()
def hover(params: lsp.HoverParams) -> lsp.Hover | None:
    uri = params.text_document.uri
    document = _document(uri)
    places = _Places(uri, document.text)
    found = aside.ask(hovering.hover, document, *places.here(params.position))
    if found is None:
        return None
    return lsp.Hover(lsp.MarkupContent(lsp.MarkupKind.Markdown, found.words), places.range(found.span))


@server.feature(lsp.TEXT_DOCUMENT_INLAY_HINT)
def hints(params: lsp.InlayHintParams) -> list[lsp.InlayHint]:
    document = _document(params.text_document.uri)
    places = _Places(params.text_document.uri, document.text)
    found = [(places.range(x.span).end, x.words) for x in inside.ranks(document)]
    wanted = params.range
    return [lsp.InlayHint(p, words) for p, words in found if wanted.start <= p and p <= wanted.end]


@server.feature(lsp.TEXT_DOCUMENT_CODE_LENS)
@server.thread()
def lenses(params: lsp.CodeLensParams) -> list[lsp.CodeLens]:
    document = _document(params.text_document.uri)
    places = _Places(params.text_document.uri, document.text)
    return [lsp.CodeLens(places.range(x.span), lsp.Command(x.words, "")) for x in aside.ask(inside.lenses, document)]


def run() -> None:
    """Serves one editor on stdin and stdout."""
    gc.freeze()  # what was imported stays
    gc.set_threshold(700, 10, 1000)  # all objects are looked through when a text stands still: that takes some 20 ms
    try:
        server.start_io()
    finally:
        aside.stop()
