"""The process beside the language server: what is asked of it comes back, and it never outlives who asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from einfuse import dsl
from einfuse._editor.aside import Aside
from einfuse.ir import SpecError


@pytest.fixture
def aside() -> Iterator[Aside]:
    made = Aside()
    yield made
    made.stop()


def test_errors_come_back_as_they_are(aside: Aside) -> None:
    text = "attention a {\n  x =\n}\n"
    with pytest.raises(SpecError) as here:
        dsl.parse(text)
    with pytest.raises(SpecError) as found:
        aside.ask(dsl.parse, text)
    assert (str(found.value), found.value.loc) == (str(here.value), here.value.loc)
    assert "Traceback" in found.value.__notes__[0]
    assert aside.ask(os.getpid) == aside.ask(os.getpid) != os.getpid()


def test_a_process_that_ends_is_replaced(aside: Aside) -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        aside.ask(os._exit, 3)
    assert aside.ask(len, "abc") == 3


def test_what_is_printed_is_no_answer(aside: Aside) -> None:
    assert aside.ask(print, "a line") is None
    assert aside.ask(len, "abc") == 3


def test_nothing_of_the_folder_that_an_editor_is_in_is_imported(
    aside: Aside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    assert aside.ask(len, "abc") == 3


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_it_ends_with_a_server_that_is_killed() -> None:
    code = "import os\nfrom einfuse._editor.aside import Aside\nAside().ask(len, '')\nos.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE)  # both hold the pipe: it is read to its end
    assert done.returncode == -signal.SIGKILL
