"""Writes library/README.md: what the library has, and what the compiler makes of it. Run by `python -m einfuse.library.table`.

Every cell is computed: from the spec, from its derivation, from the sources of the layers and models that name it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import einfuse
from einfuse.library import mechanisms, tested, verified

FOLDER = Path(__file__).resolve().parent
HEAD = """# The library

Made by `python -m einfuse.library.table`; a test keeps it true. `einfuse list QUERY` searches it, `einfuse verify NAME` checks one spec
against the float64 oracle, `einfuse verify --all` every one.

* **passes**: how often the keys are read, as written -> after fusing.
* **backward**: the kernels of the gradient of every float input.
* **mask**: `formula` of positions and sizes, `data` where a tensor of ints or booleans takes part; `-` where every key is seen.
* **linear form**: `scan` where the spec itself is one, in time linear in the tokens; the rank of the weights where they factor across queries
  and keys, and how the linear form then runs; `-` where none was found (`einfuse passes` says why).
* **layers, models**: what in this library is built on it (`einfuse.library.layers`, `einfuse.library.models`); `-`: nothing is.
* **formula**: the tests that compare it, or a layer on it, with a formula in plain torch written from the paper.
* **verified**: comparisons of kernels with the oracle that were good, values and gradients, on both back ends in float32 and bfloat16 (`python
  -m einfuse.library.verified` reports what is not verified as it stands).

"""
COLUMNS = "spec | paper and formula | passes | backward | mask | linear form | layers, models | formula | verified"


def table() -> str:
    """The whole text of the file."""
    users = defaultdict(list)
    built = built_on()
    for name, specs in built.items():
        for spec in specs:
            users[spec].append(name)
    families: dict[str, list[str]] = defaultdict(list)
    infos = einfuse.list_specs()
    formulas, findings = tested.tested({s.name for s in infos}, built), verified.read()
    for info in infos:
        known = verified.status(FOLDER.parent / info.path, findings.get(info.name))
        families[info.family].append(row(info, users[info.name], formulas[info.name], known))
    parts = [HEAD]
    for family in sorted(families):
        title = family.capitalize()
        parts.append(f"## {title}\n\n| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}\n")
        parts += [*families[family], "\n"]
    return "".join([*parts, mechanisms.section()])


def row(info: einfuse.SpecInfo, users: list[str], formulas: set[str], known: str) -> str:
    attention = einfuse.compile(info.name)
    reports = [f"{r.before} -> {r.after}" for r in attention.passes()]
    cells = (
        f"[{info.name}]({Path(info.path).relative_to('library')})",
        info.paper.replace("|", "\\|"),
        ", ".join(reports) or "no fold",
        backward(attention),
        mask(FOLDER.parent / info.path),
        linear(attention, info.text),
        ", ".join(sorted(users)) or "-",
        ", ".join(f"[{Path(f).stem.removeprefix('test_')}](../tests/{f})" for f in sorted(formulas)) or "none",
        known,
    )
    return f"| {' | '.join(cells)} |\n"


def backward(attention: einfuse.Attention) -> str:
    """The number of kernels, or the reason why there is none. A choice has no gradient: what reads it has."""
    attention = attention if attention.selection is None else attention.selection.rest
    wanted = tuple(t.name for t in attention.cascade.inputs if t.dtype == "float" and not t.param)
    try:
        return str(len(attention.program.backward_of(wanted).cascades))
    except einfuse.EinfuseError as error:
        return f"none: {str(error).splitlines()[0]}"


def linear(attention: einfuse.Attention, text: str) -> str:
    """The form in time linear in the tokens: the spec itself, or what the factorisation found."""
    if re.search(r"^ *scan \w+ \{", text, re.MULTILINE):
        return "scan"
    found = attention.forms.found
    return "-" if found is None else f"rank {found.show()}, {'a scan' if found.causal else 'sums'}".replace("*", "\\*")


def mask(path: Path) -> str:
    """Where the conditions of a spec look, told from its text."""
    text = re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", path.read_text(encoding="utf-8"))
    conditions = re.findall(r"\bwhere\b(.*?)(?=\n  \w+(?:\[[^\]]*\])? = |\n  out |;|\Z)", text, re.DOTALL)
    if not conditions:
        return "-"
    tensors = set(re.findall(r"\bin (\w+)\[[^\n;]*?\]: (?:int|bool)", text))
    return "data" if any(" in " in c or set(re.findall(r"\w+", c)) & tensors for c in conditions) else "formula"


def built_on() -> dict[str, set[str]]:
    """For every layer and model of the library, the specs that its source names."""
    specs = {s.name for s in einfuse.list_specs()}
    found: dict[str, set[str]] = {}
    for file in sorted(FOLDER.glob("layers/*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = _constants(node) & specs
    for file in sorted(FOLDER.glob("models/*.py")):
        named = _constants(ast.parse(file.read_text(encoding="utf-8"))) & specs
        if named:
            found[f"models.{file.stem}"] = named
    return found


def _constants(node: ast.AST) -> set[str]:
    """The strings within the arguments of a call; torch's `GELU(approximate="tanh")` names no spec."""
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    given = [a for call in calls for a in (*call.args, *(k.value for k in call.keywords))]
    ways = {id(k.value) for call in calls for k in call.keywords if k.arg == "approximate"}
    found = (a for g in given for a in ast.walk(g) if isinstance(a, ast.Constant) and id(a) not in ways)
    return {a.value for a in found if isinstance(a.value, str)}


def main() -> int:
    path = FOLDER / "README.md"
    text = table()
    changed = not path.exists() or path.read_text(encoding="utf-8") != text
    if changed:
        path.write_text(text, encoding="utf-8")
    print(f"{'wrote' if changed else 'unchanged:'} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
