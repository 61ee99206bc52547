"""The text form of a plan: `show` prints it, `read` gives the same plan back.

    kernel causal compute f32 narrow bf16
      | o[i, e] = sum[j](...)                 the cascade, for people
      ambient b = B by 1
      tile i = Nq by 128
      feature d = 64 by 64
      tensor q[4] : bf16
      tensor o[4] : bf16 out
      param scale : float
      sizes B, Nq, Nk
      region
        q : float[i, d] = load q[b, h, i, d]
      fold j = Nk by 64
        state acc : float[i, e] = 0.0
        bounds
          hi : int = size i.hi
        phase full from zero to hi
          s : float[i, j] = dot[d](q, k)
          next acc_new
      region
        store o[b, h, i, e] = acc

One operation a line. A name holds no white space, comma or bracket. The names of a phase end with it; all others hold to the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from einfuse.codegen.plan import nodes as kp
from einfuse.ir import DType, Scalar

_NAME = r"[^\s,\[\]()]+"
_LIST = r"[^\[\]()]*"
_VALUE = rf"(?P<out>{_NAME}) : (?P<type>float|int|bool)(?:\[(?P<dims>{_LIST})\])?"
_LINE = {
    "kernel": rf"kernel (?P<name>{_NAME}) compute (?P<compute>\w+) narrow (?P<narrow>\w+)",
    "comment": r"\|(?: (?P<text>.*))?",
    "block": rf"(?P<kind>ambient|tile|feature) (?P<rank>{_NAME}) = (?P<size>{_NAME}) by (?P<block>\d+)(?P<turns> in turn)?",
    "tensor": rf"tensor (?P<name>{_NAME})\[(?P<axes>\d+)\] : (?P<storage>\w+)(?P<written> out)?",
    "kept": rf"kept (?P<name>{_NAME}) of (?P<rank>{_NAME}) by (?P<size>{_NAME})",
    "param": rf"param (?P<name>{_NAME}) : (?P<type>float|int|bool)",
    "sizes": rf"sizes (?P<names>{_LIST})",
    "region": r"region",
    "bounds": r"bounds",
    "fold": rf"fold (?P<rank>{_NAME}) = (?P<size>{_NAME}) by (?P<step>\d+)(?P<even> even)?(?P<tables> tables(?P<over>{_LIST}))?",
    "state": rf"state {_VALUE} = (?P<init>\S+)",
    "phase": rf"phase (?P<label>{_NAME}) from (?P<lo>{_NAME}) to (?P<hi>{_NAME})",
    "next": rf"next(?P<names>{_LIST})",
    "store": rf"store (?P<tensor>{_NAME})\[(?P<index>{_LIST})\] = (?P<value>{_NAME})",
    "const": rf"{_VALUE} = const (?P<value>\S+)",
    "coordinate": rf"{_VALUE} = coordinate (?P<rank>{_NAME})",
    "size": rf"{_VALUE} = size (?P<name>{_NAME})",
    "given": rf"{_VALUE} = param (?P<name>{_NAME})",
    "load": rf"{_VALUE} = load (?P<tensor>{_NAME})\[(?P<index>{_LIST})\](?: where (?P<where>{_NAME}))?(?: clamp (?P<clamp>[\d, ]+))?",
    "map": rf"{_VALUE} = map (?P<fn>[^\s()]+)\((?P<args>{_LIST})\)(?P<named> named)?",
    "reduce": rf"{_VALUE} = reduce (?P<fn>\w+)\[(?P<rank>{_NAME})\]\((?P<arg>{_NAME})\)"
    rf"(?: or (?P<instead>{_NAME}) if (?P<enough>\w+) >= (?P<of>\w+))?(?: at (?P<at>{_NAME}))?",
    "dot": rf"{_VALUE} = dot\[(?P<rank>{_NAME})\]\((?P<a>{_NAME}), (?P<b>{_NAME})\)(?: \+ (?P<acc>{_NAME}))?"
    rf"(?: where (?P<where>{_NAME}))?(?P<wide> wide)?",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _LINE.items()}


def show(plan: kp.KernelPlan) -> str:
    """The text of a plan."""
    lines = [f"kernel {plan.name} compute {plan.compute} narrow {plan.narrow}"]
    lines += [f"  | {x}".rstrip() for x in plan.equations.splitlines()]
    blocks = (
        [("ambient", b) for b in plan.ambient]
        + [("tile", b) for b in (plan.tile,) if b]
        + [("feature", b) for b in plan.features]
    )
    lines += [f"  {kind} {b.rank} = {b.size} by {b.block}{' in turn' * b.turns}" for kind, b in blocks]
    lines += [f"  tensor {t.name}[{t.axes}] : {t.storage}{' out' * t.out}" for t in plan.tensors]
    lines += [f"  kept {k.tensor} of {k.tile} by {k.size}" for k in plan.kept]
    lines += [f"  param {name} : {dtype}" for name, dtype in plan.params]
    if plan.sizes:
        lines.append(f"  sizes {', '.join(plan.sizes)}")
    for step in plan.steps:
        match step:
            case kp.Fold():
                lines += _shown_fold(step)
            case tuple():
                lines += ["  region", *_shown_region(step, 4)]
    return "\n".join(lines) + "\n"


def _shown_region(region: kp.Region, indent: int) -> Iterator[str]:
    return (" " * indent + shown(op) for op in region)


def _shown_fold(fold: kp.Fold) -> Iterator[str]:
    tables = f" tables {', '.join(fold.table_ranks)}".rstrip() if fold.tabulated else ""
    yield f"  fold {fold.rank} = {fold.size} by {fold.step}{' even' * fold.even}{tables}"
    for s in fold.states:
        yield f"    state {_defined(s.value)} = {s.init!r}"
    yield "    bounds"
    yield from _shown_region(fold.bounds, 6)
    for p in fold.phases:
        yield f"    phase {p.label} from {p.lo.name} to {p.hi.name}"
        yield from _shown_region(p.body, 6)
        yield f"      next {_names(p.updates)}".rstrip()


def shown(op: kp.Op) -> str:
    """One operation as a line."""
    if isinstance(op, kp.Store):
        return f"store {op.tensor}[{_names(op.index)}] = {op.value.name}"
    return f"{_defined(op.out)} = {_right(op)}"


def _right(op: kp.Op) -> str:
    match op:
        case kp.Const(value=value):
            return f"const {value!r}"
        case kp.Coordinate(rank=rank):
            return f"coordinate {rank}"
        case kp.Size(name=name):
            return f"size {name}"
        case kp.Param(name=name):
            return f"param {name}"
        case kp.Load(tensor=tensor, index=index, where=where, clamp=clamp):
            live = f" where {where.name}" if where else ""
            return f"load {tensor}[{_names(index)}]{live}" + (f" clamp {', '.join(map(str, clamp))}" if clamp else "")
        case kp.Map(fn=fn, args=args, named=named):
            return f"map {fn}({_names(args)}){' named' * named}"
        case kp.Reduce(fn=fn, arg=arg, rank=rank, instead=instead, enough=enough, at=at):
            end = f" or {instead.name} if {enough[0]} >= {enough[1]}" if instead else f" at {at.name}" if at else ""
            return f"reduce {fn}[{rank}]({arg.name}){end}"
        case kp.Dot(a=a, b=b, rank=rank, acc=acc, narrow=narrow, where=where):
            ends = (f" + {acc.name}" if acc else "") + (f" where {where.name}" if where else "") + " wide" * (not narrow)
            return f"dot[{rank}]({a.name}, {b.name}){ends}"
    raise AssertionError(f"{type(op).__name__} is no operation of a plan")


def _defined(v: kp.Value) -> str:
    return f"{v.name} : {v.dtype}" + (f"[{', '.join(v.dims)}]" if v.dims else "")


def _names(values: Iterable[kp.Value]) -> str:
    return ", ".join(v.name for v in values)


def read(text: str) -> kp.KernelPlan:
    """The plan that `show` printed. Raises ValueError that quotes the first line which is none of a plan's or reads an unknown name."""
    return _Reader([x.strip() for x in text.splitlines() if x.strip()]).plan()


@dataclass(slots=True)
class _Reader:
    lines: Sequence[str]
    at: int = 0
    known: dict[str, kp.Value] = field(default_factory=dict)

    def taken(self, *kinds: str) -> tuple[str, dict[str, str]] | None:
        """The next line if it is of one of these kinds, with the parts of it."""
        line = self.lines[self.at] if self.at < len(self.lines) else ""
        for kind in kinds:
            if found := _PATTERNS[kind].fullmatch(line):
                self.at += 1
                return kind, found.groupdict()
        return None

    def wanted(self, kind: str) -> dict[str, str]:
        found = self.taken(kind)
        if found is None:
            raise self.fault(f"expected {kind}")
        return found[1]

    def fault(self, why: str) -> ValueError:
        line = self.lines[self.at] if self.at < len(self.lines) else "the end"
        return ValueError(f"line {self.at + 1} of a plan: {why}, found: {line}")

    # ---------------------------------------------------------------------------------------------------------------- the whole

    def plan(self) -> kp.KernelPlan:
        head = self.wanted("kernel")
        comments: list[str] = []
        blocks: dict[str, list[kp.Block]] = {"ambient": [], "tile": [], "feature": []}
        tensors: list[kp.Arg] = []
        params: list[tuple[str, DType]] = []
        sizes: tuple[str, ...] = ()
        kept: list[kp.Kept] = []
        while found := self.taken("comment", "block", "tensor", "kept", "param", "sizes"):
            match found:
                case "comment", x:
                    comments.append(x["text"] or "")
                case "block", x:
                    blocks[x["kind"]].append(kp.Block(x["rank"], _size(x["size"]), int(x["block"]), bool(x["turns"])))
                case "tensor", x:
                    tensors.append(kp.Arg(x["name"], int(x["axes"]), x["storage"], bool(x["written"])))  # type: ignore[arg-type]  # a Storage
                case "kept", x:
                    kept.append(kp.Kept(x["name"], x["rank"], _size(x["size"])))
                case "param", x:
                    params.append((x["name"], x["type"]))  # type: ignore[arg-type]  # one of three
                case _, x:
                    sizes = _list(x["names"])
        steps: list[kp.Region | kp.Fold] = []
        while found := self.taken("region", "fold"):
            steps.append(self.region() if found[0] == "region" else self.fold(found[1]))
        if self.at < len(self.lines):
            raise self.fault("expected an operation, a region or a fold")
        tile = blocks["tile"][0] if blocks["tile"] else None
        return kp.KernelPlan(
            head["name"],
            "\n".join(comments),
            tuple(blocks["ambient"]),
            tile,
            tuple(blocks["feature"]),
            tuple(tensors),
            tuple(params),
            sizes,
            tuple(steps),
            head["compute"],  # type: ignore[arg-type]  # f32 or f64
            head["narrow"],  # type: ignore[arg-type]  # a Storage
            tuple(kept),
        )

    def fold(self, head: dict[str, str]) -> kp.Fold:
        states = []
        while found := self.taken("state"):
            states.append(kp.State(self.defined(found[1]), float(found[1]["init"])))
        self.wanted("bounds")
        bounds = self.region()
        phases = []
        while found := self.taken("phase"):
            phases.append(self.phase(found[1]))
        over = _list(head["over"] or "")
        return kp.Fold(
            head["rank"],
            int(head["step"]),
            tuple(states),
            bounds,
            tuple(phases),
            bool(head["tables"]),
            over,
            _size(head["size"]),
            bool(head["even"]),
        )

    def phase(self, head: dict[str, str]) -> kp.Phase:
        lo, hi = self.values(head["lo"], head["hi"])
        outside = dict(self.known)
        body = self.region()
        updates = self.values(*_list(self.wanted("next")["names"]))
        self.known = outside
        return kp.Phase(lo, hi, body, updates, head["label"])

    # -------------------------------------------------------------------------------------------------------------- operations

    def region(self) -> kp.Region:
        ops: list[kp.Op] = []
        kinds = ("store", "const", "coordinate", "size", "given", "load", "map", "reduce", "dot")
        while found := self.taken(*kinds):
            ops.append(self.operation(*found))
        return tuple(ops)

    def operation(self, kind: str, x: dict[str, str]) -> kp.Op:
        if kind == "store":
            return kp.Store(x["tensor"], self.values(*_list(x["index"])), self.values(x["value"])[0])
        read = self.operands(kind, x)
        out = self.defined(x)
        match kind:
            case "const":
                return kp.Const(out, _scalar(x["value"]))
            case "coordinate":
                return kp.Coordinate(out, x["rank"])
            case "size":
                return kp.Size(out, x["name"])
            case "given":
                return kp.Param(out, x["name"])
            case "load":
                clamp = tuple(map(int, _list(x["clamp"] or "")))
                return kp.Load(out, x["tensor"], read["index"], next(iter(read["where"]), None), clamp)
            case "map":
                return kp.Map(out, x["fn"], read["args"], bool(x["named"]))
            case "reduce":
                if not x["instead"]:
                    return kp.Reduce(out, x["fn"], read["arg"][0], x["rank"], at=next(iter(read["at"]), None))
                sizes = (_size(x["enough"]), _size(x["of"]))
                return kp.Reduce(out, x["fn"], read["arg"][0], x["rank"], read["instead"][0], sizes)
        acc, where = (next(iter(read[part]), None) for part in ("acc", "where"))
        return kp.Dot(out, read["a"][0], read["b"][0], x["rank"], acc, not x["wide"], where)

    def operands(self, kind: str, x: dict[str, str]) -> dict[str, tuple[kp.Value, ...]]:
        """The values that an operation reads, by the part of the line that names them: looked up before its own is defined."""
        reduce, dot = ("arg", "instead", "at"), ("a", "b", "acc", "where")
        parts = {"load": ("index", "where"), "map": ("args",), "reduce": reduce, "dot": dot}.get(kind, ())
        return {part: self.values(*_list(x[part] or "")) for part in parts}

    def defined(self, x: dict[str, str]) -> kp.Value:
        value = kp.Value(x["out"], _list(x["dims"] or ""), x["type"])  # type: ignore[arg-type]  # one of three
        self.known[value.name] = value
        return value

    def values(self, *names: str) -> tuple[kp.Value, ...]:
        for name in names:
            if name not in self.known:
                self.at -= 1
                raise self.fault(f"no value is called {name}")
        return tuple(self.known[n] for n in names)


def _list(text: str) -> tuple[str, ...]:
    return tuple(x.strip() for x in text.split(",") if x.strip())


def _size(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _scalar(text: str) -> Scalar:
    if text in ("True", "False"):
        return text == "True"
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
