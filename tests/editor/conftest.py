"""What the tests of editors share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    main = sys.modules["__main__"]
    folder = str(tmp_path_factory.mktemp("ipython"))
    make: Any = InteractiveShell  # which IPython does not type
    made = make(ipython_dir=folder, config=Config({"HistoryManager": {"enabled": False}}))
    made.run_line_magic("load_ext", "einfuse")
    yield made
    made.restore_sys_module_state()
    sys.modules["__main__"] = main
