"""What printers of torch text share: lines, names for values, and the forms of numbers and types."""

from __future__ import annotations

import keyword
import math
import re
from dataclasses import dataclass, field

from einfuse.codegen.plan import Value
from einfuse.ir.rewrite import fresh


@dataclass(slots=True)
class Printer:
    """Lines at an indentation, and a Python name for every value; ``taken`` names are not given out."""

    taken: set[str]
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    names: dict[str, str] = field(default_factory=dict)

    def line(self, text: str = "") -> None:
        self.lines.append("    " * self.indent + text if text else "")

    def fresh(self, name: str) -> str:
        return fresh(identifier(name), self.taken)

    def define(self, v: Value) -> str:
        self.names[v.name] = self.fresh(v.name)
        return self.names[v.name]

    def ref(self, v: Value) -> str:
        return self.names[v.name]


def identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name.replace("'", "_new"))
    return f"x_{text}" if not text or text[0].isdigit() or keyword.iskeyword(text) else text


def number(value: float | int | bool) -> str:
    return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def kind(v: Value) -> str:
    return {"float": "real", "int": "torch.int64", "bool": "torch.bool"}[v.dtype]
