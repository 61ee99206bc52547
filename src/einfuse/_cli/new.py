"""The command `new`: a commented spec, a layer around it and a test of both, to start from."""

from __future__ import annotations

import argparse
import keyword
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from einfuse._cli import screen
from einfuse.ir import EinfuseError

TEMPLATES = Path(__file__).with_name("templates")
RESERVED = frozenset("attention over rank in out def return use where optional if else and or not true false".split())


def new(args: argparse.Namespace) -> int:
    """Writes NAME.attn, NAME.py and test_NAME.py into the folder; nothing at all where one of them exists."""
    texts = made(args.name)
    folder = Path(args.folder)
    there = [str(folder / file) for file in texts if (folder / file).exists()]
    if there:
        raise EinfuseError(f"{', '.join(there)} exists already; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        with open(folder / file, "x", encoding="utf-8") as out:  # "x": another process may have been faster
            out.write(text)
        screen.out().print(str(folder / file))
    screen.say(f"next: python -m pytest {folder / f'test_{args.name}.py'}")
    return 0


def made(name: str) -> dict[str, str]:
    """The three texts by file name. Raises EinfuseError for a name that is none in the language or in Python."""
    if not (name.isascii() and name.isidentifier() and name.islower()) or keyword.iskeyword(name) or name in RESERVED:
        raise EinfuseError(f"the name must be a lower-case identifier and no word of the language or of Python, found {name!r}")
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    words = [w for w in name.split("_") if w]
    values = {"name": name, "title": " ".join(words).capitalize(), "layer": "".join(w.capitalize() for w in words)}
    files = {f"{name}.attn": "spec.attn.j2", f"{name}.py": "layer.py.j2", f"test_{name}.py": "test.py.j2"}
    return {file: templates.get_template(template).render(values) for file, template in files.items()}
