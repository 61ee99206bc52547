"""Kernel plans written by hand, each with inputs and a float64 reference in plain torch, for the tests of every back end.

The plans are what lowering would produce for small attention cascades; no back end is needed to build them. Use `CASES`::

    case = CASES["softmax"](storage="f32")
    inputs, outputs = case.tensors(case.sizes, torch.device("cpu")), case.outputs(case.sizes)
    kernel({**inputs, **outputs}, case.params, case.sizes)
    expected = case.reference(inputs, case.params)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from einfuse.codegen.plan import (
    Arg,
    Block,
    Const,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Load,
    Map,
    Op,
    Param,
    Phase,
    Reduce,
    Region,
    Size,
    State,
    Storage,
    Store,
    Value,
)
from einfuse.codegen.precision import Compute
from einfuse.ir import FUNCTIONS, DType, Scalar

Tensors = Mapping[str, torch.Tensor]
Runner = Callable[[KernelPlan, Tensors, Mapping[str, float], Mapping[str, int]], None]
"""Runs a plan on tensors, numbers and sizes."""

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


@dataclass
class Code:
    """A region under construction; every method appends one op and returns the value it defines."""

    order: tuple[str, ...]
    ops: list[Op] = field(default_factory=list)
    suffix: str = ""

    def _value(self, name: str, dims: tuple[str, ...], dtype: DType) -> Value:
        return Value(name + self.suffix, tuple(r for r in self.order if r in dims), dtype)

    def const(self, name: str, value: Scalar) -> Value:
        dtype: DType = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        return self._add(Const(self._value(name, (), dtype), value))

    def coordinate(self, rank: str) -> Value:
        return self._add(Coordinate(self._value(rank, (rank,), "int"), rank))

    def size(self, name: str, called: str = "") -> Value:
        return self._add(Size(self._value(called or name.replace(".", "_"), (), "int"), name))

    def param(self, name: str, dtype: DType) -> Value:
        return self._add(Param(self._value(name, (), dtype), name))

    def load(self, name: str, tensor: str, *index: Value, dtype: DType = "float", where: Value | None = None,
             clamp: tuple[int, ...] = ()) -> Value:  # fmt: skip
        dims = tuple(r for x in (*index, *((where,) if where else ())) for r in x.dims)
        return self._add(Load(self._value(name, dims, dtype), tensor, index, where, clamp))

    def map(self, name: str, fn: str, *args: Value) -> Value:
        result = "float" if fn == "copy" else FUNCTIONS[fn].result
        if result == "same" or fn == "copy":
            types = {a.dtype for a in (args[1:] if fn == "select" else args)}
            result = "float" if "float" in types else "int" if "int" in types else "bool"
        return self._add(Map(self._value(name, tuple(r for a in args for r in a.dims), result), fn, args))  # type: ignore[arg-type]

    def reduce(self, name: str, fn: str, arg: Value, rank: str) -> Value:
        return self._add(Reduce(self._value(name, tuple(r for r in arg.dims if r != rank), arg.dtype), fn, arg, rank))

    def dot(self, name: str, a: Value, b: Value, rank: str, acc: Value | None = None, narrow: bool = True) -> Value:
        dims = tuple(r for r in a.dims + b.dims if r != rank)
        return self._add(Dot(self._value(name, dims, "float"), a, b, rank, acc, narrow))

    def store(self, tensor: str, *index: Value, value: Value) -> None:
        self.ops.append(Store(tensor, index, value))

    def _add(self, op: Const | Coordinate | Size | Param | Load | Map | Reduce | Dot) -> Value:
        self.ops.append(op)
        return op.out

    @property
    def region(self) -> Region:
        return tuple(self.ops)


@dataclass(frozen=True)
class Case:
    """A plan with a default size, makers of its tensors, and what it should compute (in float64)."""

    plan: KernelPlan
    sizes: dict[str, int]
    params: dict[str, int | float]
    shapes: Callable[[Mapping[str, int]], dict[str, tuple[int, ...]]]
    reference: Callable[[Tensors, Mapping[str, int | float]], dict[str, torch.Tensor]]
    fill: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, t: t
    tables: Callable[[Tensors, Mapping[str, int]], dict[str, torch.Tensor]] = lambda tensors, sizes: {}

    def tensors(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        """Inputs with normal values; float tensors get strides that are not contiguous (an axis order reversed in memory)."""
        generator, out = torch.Generator().manual_seed(seed), {}
        for arg in self.plan.tensors:
            if not arg.out:
                t = self.fill(arg.name, torch.randn(self.shapes(sizes)[arg.name], generator=generator, dtype=torch.float64))
                out[arg.name] = scattered(t.to(DTYPES[arg.storage]))
        return {**out, **self.tables(out, sizes)}

    def outputs(self, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Outputs poisoned with NaN (or a large integer), so that a point that is never written shows."""
        shapes = self.shapes(sizes)
        return {a.name: poisoned(shapes[a.name], DTYPES[a.storage]) for a in self.plan.tensors if a.out}


def scattered(t: torch.Tensor) -> torch.Tensor:
    """The same values with the first two axes (heads before batches) swapped in memory and rows padded by 3 elements."""
    if t.dim() < 2 or not t.dtype.is_floating_point:
        return t
    padded = torch.full((t.shape[1], t.shape[0], *t.shape[2:-1], t.shape[-1] + 3), math.nan, dtype=t.dtype)
    view = padded.transpose(0, 1)[..., : t.shape[-1]] if t.dim() > 2 else t.clone()
    return view.copy_(t)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, math.nan if dtype.is_floating_point else 99, dtype=dtype)


def _accumulator(storage: Storage) -> Storage:
    return "f64" if storage == "f64" else "f32"


def _plan(name: str, equations: str, tile: Block, fold: str, storage: Storage, tensors: tuple[Arg, ...],
          params: tuple[tuple[str, DType], ...], sizes: tuple[str, ...], widths: tuple[int, int],
          steps: tuple[Region | Fold, ...], features: str = "de") -> KernelPlan:  # fmt: skip
    compute: Compute = "f64" if storage == "f64" else "f32"
    blocks = tuple(Block(r, n, n) for r, n in zip("de", widths, strict=True) if r in features)
    ambient = (Block("b", "B", 1), Block("h", "H", 1))
    return KernelPlan(name, equations, ambient, tile, blocks, tensors, params, sizes, steps, compute, storage)


# --------------------------------------------------------------------------------------------------- online softmax, shared


def _softmax_states(code: Code) -> tuple[State, ...]:
    m, total = code._value("m", ("i",), "float"), code._value("l", ("i",), "float")
    return State(m, -math.inf), State(total, 0.0), State(code._value("acc", ("i", "e"), "float"), 0.0)


def _softmax_block(c: Code, states: tuple[State, ...], s: Value, v: Value, mask: Value | None) -> tuple[Value, ...]:
    """One step of the online softmax: new (m, l, acc) from the scores of a block; a masked point contributes nothing."""
    m, old, acc = (s.value for s in states)
    low, zero = c.const("low", -math.inf), c.const("zero", 0.0)
    visible = c.map("visible", "select", mask, s, low) if mask else s
    new = c.map("m_new", "max", m, c.reduce("m_block", "max", visible, "j"))
    reference = c.map("m_ref", "select", c.map("alive", ">", new, low), new, zero)
    p = c.map("p_all", "exp", c.map("shifted", "-", s, reference))
    p = c.map("p", "select", mask, p, zero) if mask else p
    scale = c.map("rescale", "exp", c.map("m_step", "-", m, reference))
    total = c.map("l_new", "+", c.map("l_old", "*", old, scale), c.reduce("l_block", "sum", p, "j"))
    return new, total, c.dot("acc_new", p, v, "j", c.map("acc_old", "*", acc, scale))


def _softmax_end(c: Code, states: tuple[State, ...], b: Value, h: Value, i: Value, e: Value) -> None:
    m, old, acc = (s.value for s in states)
    zero = c.const("none", 0.0)
    o = c.map("o", "select", c.map("some", ">", old, zero), c.map("ratio", "/", acc, old), zero)
    c.store("o", b, h, i, e, value=o)
    c.store("m", b, h, i, value=m)
    c.store("l", b, h, i, value=old)


def _softmax_shapes(widths: tuple[int, int]) -> Callable[[Mapping[str, int]], dict[str, tuple[int, ...]]]:
    def shapes(n: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        b, h, heads = n["B"], n["H"], n.get("Hk", n["H"])
        return {
            "q": (b, h, n["Nq"], widths[0]),
            "k": (b, heads, n["Nk"], widths[0]),
            "v": (b, heads, n["Nk"], widths[1]),
            "o": (b, h, n["Nq"], widths[1]),
            "m": (b, h, n["Nq"]),
            "l": (b, h, n["Nq"]),
            "lse": (b, h, n["Nq"]),
            "delta": (b, h, n["Nq"]),
            "do": (b, h, n["Nq"], widths[1]),
            "dk": (b, h, n["Nk"], widths[0]),
            "dv": (b, h, n["Nk"], widths[1]),
            "slope": (h,),
            "doc": (b, n["Nk"]),
        }

    return shapes


def _qkv(storage: Storage) -> tuple[Arg, ...]:
    return tuple(Arg(n, 4, storage) for n in "qkv")


def _softmax_outs(storage: Storage) -> tuple[Arg, ...]:
    return Arg("o", 4, storage, True), Arg("m", 3, _accumulator(storage), True), Arg("l", 3, _accumulator(storage), True)


def _softmax_truth(s: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    s = s if mask is None else s.masked_fill(~mask, -math.inf)
    m = s.amax(-1)
    p = torch.exp(s - m.nan_to_num(neginf=0.0)[..., None])
    total = p.sum(-1)
    o = torch.where(total[..., None] > 0, p @ v / total[..., None], 0.0)
    return {"o": o, "m": m, "l": total}


def _heads(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return t.double().repeat_interleave(like.shape[1] // t.shape[1], 1)


# -------------------------------------------------------------------------------- 1. causal window, grouped heads, three phases


def softmax(storage: Storage = "f32", widths: tuple[int, int] = (24, 40), tile: int = 32, step: int = 16) -> Case:
    """``o = softmax(q k / sqrt(D)) v`` where ``j <= i + Nk - Nq`` and ``i + Nk - Nq - j < window``; heads in groups."""
    order = ("i", "j", "d", "e")
    c = Code(order)
    b, h, i, d = map(c.coordinate, "bhid")
    head = c.map("h_kv", "//", h, c.param("group", "int"))
    scale, q = c.param("scale", "float"), c.load("q", "q", b, h, i, d)
    prologue, states = c.region, _softmax_states(c)

    c = Code(order)
    nk, window, one = c.size("Nk"), c.param("window", "int"), c.const("one", 1)
    shift = c.map("shift", "-", nk, c.size("Nq"))
    top, bottom = c.map("top", "+", c.size("i.lo"), shift), c.map("bottom", "+", c.size("i.hi"), shift)
    zero, width = c.const("zero_int", 0), c.const("step", step)
    hi = c.map("hi", "max", c.map("hi_cut", "min", bottom, nk), zero)
    first = c.map("first", "+", c.map("before", "-", top, window), one)
    lo = c.map("lo", "min", c.map("lo_cut", "max", first, zero), hi)
    gap = c.map("gap", "max", c.map("gap_raw", "-", c.map("last", "-", bottom, window), lo), zero)
    blocks = c.map("blocks", "//", c.map("gap_up", "+", gap, c.const("up", step - 1)), width)
    full_lo = c.map("full_lo", "min", c.map("full_at", "+", lo, c.map("blocks_wide", "*", blocks, width)), hi)
    end = c.map("end", "min", c.map("diagonal", "+", top, one), nk)
    room = c.map("room", "//", c.map("span", "max", c.map("span_raw", "-", end, full_lo), zero), width)
    full_hi = c.map("full_hi", "+", full_lo, c.map("room_wide", "*", room, width))
    bounds = c.region

    def phase(label: str, start: Value, stop: Value, suffix: str) -> Phase:
        c = Code(order, suffix=suffix)
        j, e = c.coordinate("j"), c.coordinate("e")
        k, v = c.load("k", "k", b, head, j, d), c.load("v", "v", b, head, j, e)
        s, mask = c.map("s", "*", c.dot("qk", q, k, "d"), scale), None
        if label == "masked":
            row = c.map("row", "+", i, shift)
            inside = c.map("inside", "<", c.map("age", "-", row, j), window)
            mask = c.map("causal", "<=", j, row)
            mask = c.map("mask", "and", c.map("near", "and", mask, inside), c.map("exists", "<", j, nk))
        updates = _softmax_block(c, states, s, v, mask)
        return Phase(start, stop, c.region, updates, label)

    phases = (phase("masked", lo, full_lo, "_1"), phase("full", full_lo, full_hi, "_2"), phase("masked", full_hi, hi, "_3"))
    fold = Fold("j", step, states, bounds, phases, size="Nk")
    c = Code(order)
    _softmax_end(c, states, b, h, i, c.coordinate("e"))
    plan = _plan("softmax", "s[i, j] = sum[d] q * k * scale where 0 <= i + Nk - Nq - j < window\n"
                 "o[i, e] = sum[j] softmax[j](s) * v",
                 Block("i", "Nq", tile), "j", storage, _qkv(storage) + _softmax_outs(storage),
                 (("group", "int"), ("scale", "float"), ("window", "int")), ("B", "H", "Nq", "Nk"), widths,
                 (prologue, fold, c.region))  # fmt: skip

    def reference(t: Tensors, params: Mapping[str, int | float]) -> dict[str, torch.Tensor]:
        q, k, v = t["q"].double(), _heads(t["k"], t["q"]), _heads(t["v"], t["q"])
        age = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] - torch.arange(k.shape[2])
        return _softmax_truth(q @ k.mT * params["scale"], v, (age >= 0) & (age < params["window"]))

    sizes = {"B": 2, "H": 4, "Hk": 2, "Nq": 37, "Nk": 53}
    return Case(plan, sizes, {"group": 2, "scale": widths[0] ** -0.5, "window": 29}, _softmax_shapes(widths), reference)


# ----------------------------------------------------------------------------------------------- 2. its backward over key tiles


def softmax_backward(storage: Storage = "f32", widths: tuple[int, int] = (24, 40), tile: int = 32, step: int = 16) -> Case:
    """dK and dV of causal softmax attention, given the rows' ``lse`` and ``delta = sum[e] do * o``; tile j, fold i."""
    order = ("j", "i", "d", "e")
    c = Code(order)
    b, h, j, d, e = map(c.coordinate, "bhjde")
    scale = c.param("scale", "float")
    k, v = c.load("k", "k", b, h, j, d), c.load("v", "v", b, h, j, e)
    prologue = c.region
    states = tuple(State(c._value(n, ("j", r), "float"), 0.0) for n, r in (("dk", "d"), ("dv", "e")))

    c = Code(order)
    nq, width, zero = c.size("Nq"), c.const("step", step), c.const("zero_int", 0)
    lo = c.map("lo", "min", c.size("j.lo"), nq)
    gap = c.map("gap", "max", c.map("gap_raw", "-", c.map("last", "-", c.size("j.hi"), c.const("one", 1)), lo), zero)
    blocks = c.map("blocks", "//", c.map("gap_up", "+", gap, c.const("up", step - 1)), width)
    mid = c.map("mid", "min", c.map("mid_at", "+", lo, c.map("blocks_wide", "*", blocks, width)), nq)
    room = c.map("room", "//", c.map("span", "-", nq, mid), width)
    full = c.map("full_hi", "+", mid, c.map("room_wide", "*", room, width))
    bounds = c.region

    def phase(label: str, start: Value, stop: Value, suffix: str) -> Phase:
        c = Code(order, suffix=suffix)
        i = c.coordinate("i")
        q, do = c.load("q", "q", b, h, i, d), c.load("do", "do", b, h, i, e)
        lse, delta = c.load("lse", "lse", b, h, i), c.load("delta", "delta", b, h, i)
        s = c.map("s", "*", c.dot("qk", q, k, "d"), scale)
        p = c.map("p", "exp", c.map("shifted", "-", s, lse))
        if label == "masked":
            mask = c.map("mask", "and", c.map("causal", "<=", j, i), c.map("exists", "<", i, nq))
            p = c.map("p_seen", "select", mask, p, c.const("zero", 0.0))
        dv = c.dot("dv_new", p, do, "i", states[1].value)
        ds = c.map("ds", "*", p, c.map("dp_rel", "-", c.dot("dp", do, v, "e"), delta))
        dk = c.dot("dk_new", c.map("ds_scaled", "*", ds, scale), q, "i", states[0].value)
        return Phase(start, stop, c.region, (dk, dv), label)

    phases = (phase("masked", lo, mid, "_1"), phase("full", mid, full, "_2"), phase("masked", full, nq, "_3"))
    c = Code(order)
    c.store("dk", b, h, j, d, value=states[0].value)
    c.store("dv", b, h, j, e, value=states[1].value)
    acc = _accumulator(storage)
    tensors = (*_qkv(storage), Arg("do", 4, storage), Arg("lse", 3, acc), Arg("delta", 3, acc))
    outs = (Arg("dk", 4, storage, True), Arg("dv", 4, storage, True))
    plan = _plan("softmax_dkv", "p[j, i] = exp(s - lse) where j <= i\ndv[j, e] = sum[i] p * do\n"
                 "ds[j, i] = p * (dp - delta)\ndk[j, d] = sum[i] ds * q * scale",
                 Block("j", "Nk", tile), "i", storage, tensors + outs, (("scale", "float"),), ("B", "H", "Nq", "Nk"), widths,
                 (prologue, Fold("i", step, states, bounds, phases, size="Nq"), c.region))  # fmt: skip

    def reference(t: Tensors, params: Mapping[str, int | float]) -> dict[str, torch.Tensor]:
        q, k, v, do, lse, delta = (t[n].double() for n in ("q", "k", "v", "do", "lse", "delta"))
        causal = torch.arange(q.shape[2])[:, None] >= torch.arange(k.shape[2])
        p = torch.exp(q @ k.mT * params["scale"] - lse[..., None]).masked_fill(~causal, 0.0)
        ds = p * (do @ v.mT - delta[..., None])
        return {"dk": ds.mT @ q * params["scale"], "dv": p.mT @ do}

    sizes = {"B": 2, "H": 3, "Nq": 53, "Nk": 45}
    fill = lambda name, t: t + 4 if name == "lse" else t  # noqa: E731
    return Case(plan, sizes, {"scale": widths[0] ** -0.5}, _softmax_shapes(widths), reference, fill)


# --------------------------------------------------------------------------------------------------- 3. sigmoid with a slope


def sigmoid(
    storage: Storage = "f32", widths: tuple[int, int] = (24, 40), tile: int = 32, step: int = 16, fn: str = "sigmoid"
) -> Case:
    """``o = sum[j] fn(q k / sqrt(D) - log(Nk) + slope[h] * (j - i)) v``; ``fn`` may be any float function of one operand."""
    order = ("i", "j", "d", "e")
    c = Code(order)
    b, h, i, d = map(c.coordinate, "bhid")
    scale, slope = c.param("scale", "float"), c.load("slope", "slope", h)
    bias = c.map("log_n", "log", c.map("n", "float", c.size("Nk", "keys")))
    q = c.load("q", "q", b, h, i, d)
    prologue, acc = c.region, State(c._value("acc", ("i", "e"), "float"), 0.0)

    c = Code(order)
    nk, width = c.size("Nk"), c.const("step", step)
    lo, full = c.const("lo", 0), c.map("full", "*", c.map("count", "//", nk, width), width)
    bounds = c.region

    def phase(label: str, start: Value, stop: Value, suffix: str) -> Phase:
        c = Code(order, suffix=suffix)
        j, e = c.coordinate("j"), c.coordinate("e")
        k, v = c.load("k", "k", b, h, j, d), c.load("v", "v", b, h, j, e)
        s = c.map("s", "-", c.map("scaled", "*", c.dot("qk", q, k, "d"), scale), bias)
        s = c.map("s_bias", "+", s, c.map("tilt", "*", slope, c.map("offset", "-", j, i)))
        p = c.map("p", fn, s)
        if label == "masked":
            p = c.map("p_seen", "select", c.map("exists", "<", j, nk), p, c.const("zero", 0.0))
        update = c.dot("acc_new", p, v, "j", acc.value)
        return Phase(start, stop, c.region, (update,), label)

    phases = (phase("full", lo, full, "_1"), phase("masked", full, nk, "_2"))
    c = Code(order)
    c.store("o", b, h, i, c.coordinate("e"), value=acc.value)
    tensors = (*_qkv(storage), Arg("slope", 1, _accumulator(storage)), Arg("o", 4, storage, True))
    plan = _plan(fn, f"o[i, e] = sum[j] {fn}(sum[d] q * k * scale - log(Nk) + slope * (j - i)) * v",
                 Block("i", "Nq", tile), "j", storage, tensors, (("scale", "float"),), ("B", "H", "Nq", "Nk"), widths,
                 (prologue, Fold("j", step, (acc,), bounds, phases, size="Nk"), c.region))  # fmt: skip

    def reference(t: Tensors, params: Mapping[str, int | float]) -> dict[str, torch.Tensor]:
        q, k, v = (t[n].double() for n in "qkv")
        offset = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]
        s = q @ k.mT * params["scale"] - math.log(k.shape[2]) + t["slope"].double()[:, None, None] * offset
        return {"o": getattr(torch.nn.functional if fn == "softplus" else torch, fn)(s) @ v}

    sizes = {"B": 2, "H": 3, "Nq": 37, "Nk": 53}
    fill = lambda name, t: t / 30 if name == "slope" else t  # noqa: E731
    return Case(plan, sizes, {"scale": widths[0] ** -0.5}, _softmax_shapes(widths), reference, fill)


# ------------------------------------------------------------------------------------------------------ 4. a tabulated fold


def tabulated(storage: Storage = "f32", widths: tuple[int, int] = (24, 40), tile: int = 32, step: int = 16) -> Case:
    """Softmax inside packed documents, ``doc[b, i] == doc[b, j]``; the live blocks of each tile come from a table over b."""
    order = ("i", "j", "d", "e")
    c = Code(order)
    b, h, i, d = map(c.coordinate, "bhid")
    scale, q = c.param("scale", "float"), c.load("q", "q", b, h, i, d)
    own = c.load("doc_i", "doc", b, i, dtype="int")
    prologue, states = c.region, _softmax_states(c)
    c = Code(order)
    lo, nk = c.const("lo", 0), c.size("Nk")
    bounds = c.region

    def phase(label: str, suffix: str) -> Phase:
        c = Code(order, suffix=suffix)
        j, e = c.coordinate("j"), c.coordinate("e")
        k, v = c.load("k", "k", b, h, j, d), c.load("v", "v", b, h, j, e)
        s, mask = c.map("s", "*", c.dot("qk", q, k, "d"), scale), None
        if label == "masked":
            same = c.map("same", "==", own, c.load("doc_j", "doc", b, j, dtype="int"))
            mask = c.map("mask", "and", same, c.map("exists", "<", j, nk))
        updates = _softmax_block(c, states, s, v, mask)
        return Phase(lo, nk, c.region, updates, label)

    fold = Fold("j", step, states, bounds, (phase("full", "_1"), phase("masked", "_2")), True, ("b",), size="Nk")
    c = Code(order)
    _softmax_end(c, states, b, h, i, c.coordinate("e"))
    plan = _plan("documents", "s[i, j] = sum[d] q * k * scale where doc[i] == doc[j]\no[i, e] = sum[j] softmax[j](s) * v",
                 Block("i", "Nq", tile), "j", storage, (*_qkv(storage), Arg("doc", 2, "i64"), *_softmax_outs(storage)),
                 (("scale", "float"),), ("B", "H", "Nq", "Nk"), widths, (prologue, fold, c.region))  # fmt: skip

    def tables(t: Tensors, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        seen = t["doc"][:, :, None] == t["doc"][:, None, :]
        return block_table("j", seen, tile, step)

    def reference(t: Tensors, params: Mapping[str, int | float]) -> dict[str, torch.Tensor]:
        q, k, v = (t[n].double() for n in "qkv")
        return _softmax_truth(q @ k.mT * params["scale"], v, (t["doc"][:, None, :, None] == t["doc"][:, None, None, :]))

    def fill(name: str, t: torch.Tensor) -> torch.Tensor:
        return torch.arange(t.shape[1]).mul(5).div(t.shape[1]).floor().expand(t.shape) if name == "doc" else t

    sizes = {"B": 2, "H": 3, "Nq": 77, "Nk": 77}
    return Case(plan, sizes, {"scale": widths[0] ** -0.5}, _softmax_shapes(widths), reference, fill, tables)


def block_table(rank: str, seen: torch.Tensor, tile: int, step: int) -> dict[str, torch.Tensor]:
    """``<rank>_count`` and ``<rank>_block`` of a mask [rows, Nq, Nk]: per tile its full blocks, then its partial ones."""
    rows, nq, nk = seen.shape
    counts, lists = [], []
    for row in range(rows):
        for at in range(0, nq, tile):
            full: list[int] = []
            part: list[int] = []
            for n, to in enumerate(range(0, nk, step)):
                cell = seen[row, at : at + tile, to : to + step]
                if cell.any():
                    (full if cell.all() and cell.shape[1] == step else part).append(n)
            counts.append([len(full), len(part)])
            lists.append([full, part])
    longest = max(1, *(max(c) for c in counts))
    block = [[x + [0] * (longest - len(x)) for x in pair] for pair in lists]
    return {f"{rank}_count": torch.tensor(counts, dtype=torch.int32), f"{rank}_block": torch.tensor(block, dtype=torch.int32)}


# --------------------------------------------------------------------------------- 5. centred, normalised queries and keys


def cosine(storage: Storage = "f32", widths: tuple[int, int] = (24, 40), tile: int = 32, step: int = 16) -> Case:
    """Softmax of ``scale * cos(q, k - mean[d] k)``: reductions over a feature rank before and inside the fold."""
    order = ("i", "j", "d", "e")
    c = Code(order)
    b, h, i, d = map(c.coordinate, "bhid")
    scale, q = c.param("scale", "float"), c.load("q_raw", "q", b, h, i, d)
    eps, count = c.const("eps", 1e-6), c.const("width", float(widths[0]))

    def unit(c: Code, x: Value, name: str) -> Value:
        square = c.reduce(f"{name}_square", "sum", c.map(f"{name}_self", "*", x, x), "d")
        return c.map(name, "*", x, c.map(f"{name}_norm", "rsqrt", c.map(f"{name}_eps", "+", square, eps)))

    q = unit(c, q, "q")
    prologue, states = c.region, _softmax_states(c)
    c = Code(order)
    nk, width = c.size("Nk"), c.const("step", step)
    lo, full = c.const("lo", 0), c.map("full", "*", c.map("blocks", "//", nk, width), width)
    bounds = c.region

    def phase(label: str, start: Value, stop: Value, suffix: str) -> Phase:
        c = Code(order, suffix=suffix)
        j, e = c.coordinate("j"), c.coordinate("e")
        k, v = c.load("k_raw", "k", b, h, j, d), c.load("v", "v", b, h, j, e)
        k = unit(c, c.map("k_centred", "-", k, c.map("k_mean", "/", c.reduce("k_sum", "sum", k, "d"), count)), "k")
        s = c.map("s", "*", c.dot("qk", q, k, "d", narrow=False), scale)
        mask = c.map("exists", "<", j, nk) if label == "masked" else None
        updates = _softmax_block(c, states, s, v, mask)
        return Phase(start, stop, c.region, updates, label)

    fold = Fold("j", step, states, bounds, (phase("full", lo, full, "_1"), phase("masked", full, nk, "_2")), size="Nk")
    c = Code(order)
    _softmax_end(c, states, b, h, i, c.coordinate("e"))
    plan = _plan("cosine", "k[j, d] = unit(k - mean[d](k)); q[i, d] = unit(q)\n"
                 "o[i, e] = sum[j] softmax[j](scale * sum[d] q * k) * v",
                 Block("i", "Nq", tile), "j", storage, _qkv(storage) + _softmax_outs(storage),
                 (("scale", "float"),), ("B", "H", "Nq", "Nk"), widths, (prologue, fold, c.region))  # fmt: skip

    def reference(t: Tensors, params: Mapping[str, int | float]) -> dict[str, torch.Tensor]:
        q, k, v = (t[n].double() for n in "qkv")
        k = k - k.mean(-1, keepdim=True)
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        return _softmax_truth(q @ k.mT * params["scale"], v, None)

    sizes = {"B": 2, "H": 3, "Nq": 37, "Nk": 53}
    return Case(plan, sizes, {"scale": 5.0}, _softmax_shapes(widths), reference)


CASES: dict[str, Callable[..., Case]] = {
    "softmax": softmax,
    "softmax_backward": softmax_backward,
    "sigmoid": sigmoid,
    "tabulated": tabulated,
    "cosine": cosine,
}


BOUNDS = {"f64": 1e-12, "f32": 2e-5, "bf16": 2e-2, "f16": 3e-3}


def check(
    run: Runner,
    case: Case,
    storage: str = "f32",
    sizes: Mapping[str, int] | None = None,
    params: Mapping[str, int | float] | None = None,
    change: Callable[[Tensors], Tensors] = lambda t: t,
) -> dict[str, torch.Tensor]:
    """Runs a case and compares its outputs, which it returns, with what they should be."""
    sizes, params = {**case.sizes, **(sizes or {})}, {**case.params, **(params or {})}
    inputs, outputs = change(case.tensors(sizes)), case.outputs(sizes)
    run(case.plan, {**inputs, **outputs}, params, sizes)
    for name, expected in case.reference(inputs, params).items():
        found = outputs[name].double()
        scale = expected[expected.isfinite()].abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=0, atol=BOUNDS[storage] * max(scale, 1.0))
    return outputs


def renamed(plan: KernelPlan, name: str) -> KernelPlan:
    """The same plan under another kernel name."""
    return replace(plan, name=name)
