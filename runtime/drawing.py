"""A graph as lines of text, and as a picture (SVG): nodes in levels from top to bottom, an edge for the tensors that one reads of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from einfuse.runtime.graph import Graph, Host, Part

ROW, LETTER, GAP = 90, 7, 30
"""Pixels from level to level, of a letter, and between boxes."""
COLOURS = {"input": "#f4f4f2", "host": "#ffffff", "kernel": "#9ec5e8"}


def lines(graph: Graph, indent: str = "") -> list[str]:
    """A line for each node: what it reads, and what it makes with shape and dtype. What stands there several times is said once."""
    out: list[str] = []
    there = {*graph.inputs}
    for node in graph.nodes:
        made = [f"{n} {list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for n, x in node.makes.items()]
        read = ", ".join(n for n in node.reads if n in there)
        out.append(f"{indent}{node.label}: {read} -> {', '.join((*made, *node.gives))}".replace(":  ->", ": ->"))
        there |= {*node.makes, *node.gives}
        out += lines(node.graph, f"{indent}  ") if isinstance(node, Part) else []
    return _once(out, indent)


def _once(lines: Sequence[str], indent: str) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(lines):
        for period in (1, 2, 3):
            group, count = lines[at : at + period], 1
            while lines[at + period * count : at + period * (count + 1)] == group:
                count += 1
            if count > 1:
                out += [*group, f"{indent}... {count} times"]
                at += period * count
                break
        else:
            out.append(lines[at])
            at += 1
    return out


@dataclass(slots=True)
class Box:
    """A node or an input of a picture; ``level`` counts from the top, ``x`` is the middle."""

    label: str
    kind: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    level: int = 0
    x: float = 0.0

    @property
    def width(self) -> int:
        return LETTER * len(self.label) + 20

    @property
    def y(self) -> int:
        return ROW * self.level + 40


def svg(graphs: Iterable[Graph]) -> str:
    """The picture of graphs, one below the other."""
    boxes: list[Box] = []
    edges: list[tuple[Box, Box, str]] = []
    for graph in graphs:
        more, between = _laid_out(_boxes(graph, lambda n: n))
        first = max((b.level + 1 for b in boxes), default=0)
        for b in more:
            b.level += first
        boxes, edges = boxes + more, edges + between
    width = max((b.x + b.width / 2 for b in boxes), default=0) + GAP
    height = max((b.y for b in boxes), default=0) + ROW / 2
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" font-family="monospace" font-size="11">'
    ]
    for a, b, names in edges:
        x, y = (a.x + b.x) / 2, (a.y + b.y) / 2
        out.append(f'<line x1="{a.x:.0f}" y1="{a.y + 14}" x2="{b.x:.0f}" y2="{b.y - 14}" stroke="#999"/>')
        out.append(f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" fill="#666">{escape(names)}</text>')
    for b in boxes:
        left = b.x - b.width / 2
        out.append(
            f'<rect x="{left:.0f}" y="{b.y - 14}" width="{b.width}" height="28" rx="6" fill="{COLOURS[b.kind]}" stroke="#333"/>'
        )
        out.append(f'<text x="{b.x:.0f}" y="{b.y + 4}" text-anchor="middle">{escape(b.label)}</text>')
    return "\n".join((*out, "</svg>", ""))


def _boxes(graph: Graph, named: Callable[[str], str]) -> list[Box]:
    """The nodes, those of parts among them, with the tensors by the names of the whole graph."""
    out: list[Box] = []
    there = {*graph.inputs}
    for node in graph.nodes:
        made = (*node.makes, *node.gives)
        read = [n for n in node.reads if n in there]
        there |= {*made}
        if not isinstance(node, Part):
            reads, makes = (tuple(map(named, x)) for x in (read, made))
            out.append(Box(node.label, "host" if isinstance(node, Host) else "kernel", reads, makes))
            continue
        own = {mine: named(n) for mine, n in (*node.takes.items(), *zip(node.graph.outs, node.gives, strict=True))}
        out += _boxes(node.graph, lambda n, own=own, node=node: own.get(n, f"{n} of {node.label}"))  # type: ignore[misc]
    return out


def _laid_out(nodes: Sequence[Box]) -> tuple[list[Box], list[tuple[Box, Box, str]]]:
    """All boxes at their places, with inputs on top, and the edges with the names of their tensors."""
    made: dict[str, Box] = {}
    boxes: list[Box] = []
    edges: dict[tuple[int, int], tuple[Box, Box, str]] = {}
    for node in nodes:
        for n in node.reads:
            if n not in made:
                made[n] = Box(n, "input", (), (n,))
                boxes.append(made[n])
            maker, key = made[n], (id(made[n]), id(node))
            node.level = max(node.level, maker.level + 1)
            before = edges[key][2] + ", " if key in edges else ""
            edges[key] = (maker, node, before + n if maker.kind != "input" else "")
        made |= dict.fromkeys(node.makes, node)
        boxes.append(node)
    for level in range(1 + max((b.level for b in boxes), default=0)):
        x = float(GAP)
        for b in (b for b in boxes if b.level == level):
            b.x = x + b.width / 2
            x += b.width + GAP
    return boxes, list(edges.values())
