"""Every operation and scalar function of a plan on every back end, against torch."""

import math
from collections.abc import Callable

import pytest
import torch
from plans import Code, Runner

from einfuse.codegen.plan import Arg, Block, Fold, KernelPlan, Map, Phase, Region, State, Storage, Value
from einfuse.codegen.precision import Compute
from einfuse.ir import FUNCTIONS, REDUCERS, DType
from einfuse.ir.meaning import TORCH

pytestmark = pytest.mark.slow

ORDER = ("i", "j", "d")


def plan(
    steps: tuple[Region | Fold, ...],
    tensors: tuple[Arg, ...],
    sizes: tuple[str, ...] = ("N", "M"),
    params: tuple[tuple[str, DType], ...] = (),
    width: int = 20,
    tile: int = 8,
    compute: Compute = "f32",
) -> KernelPlan:
    return KernelPlan("case", "", (Block("b", "B", 1),), Block("i", "N", tile), (Block("d", width, width),), tensors, params,
                      ("B", *sizes), steps, compute)  # fmt: skip


def values(kind: str, fn: str, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 11, 20, generator=g)
    if kind == "bool":
        return x > 0
    if kind == "int":
        return (x * 5).round().int() * 2 + 1
    return x.abs() + 0.1 if fn in ("log", "log2", "log1p", "sqrt", "rsqrt", "^") else x


TRUTH: dict[str, Callable[..., torch.Tensor]] = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.true_divide, "^": torch.pow,
    "hash": TORCH["hash"], "neg": torch.neg, "abs": torch.abs,
    "max": torch.maximum, "min": torch.minimum, "sign": torch.sign, "stop": lambda x: x, "exp": torch.exp, "exp2": torch.exp2, "log": torch.log,
    "log2": torch.log2, "log1p": lambda x: torch.log1p(x), "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "softplus": torch.nn.functional.softplus, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
    "floor": torch.floor, "float": lambda x: x, "int": torch.trunc, "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge,
    "==": torch.eq, "!=": torch.ne, "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not,
    "select": torch.where, "copy": lambda x: x, "//": lambda x, y: torch.div(x, y, rounding_mode="floor"), "%": torch.remainder,
}  # fmt: skip

STORED: dict[DType, tuple[Storage, torch.dtype]] = {
    "float": ("f32", torch.float32),
    "int": ("i32", torch.int32),
    "bool": ("bool", torch.bool),
}


def operands(fn: str) -> list[DType]:
    if fn == "select":
        return ["bool", "float", "float"]
    if fn == "copy":
        return ["float"]
    kinds: dict[str, DType] = {"numeric": "float", "int": "int", "bool": "bool", "any": "float"}
    return [kinds[FUNCTIONS[fn].takes]] * FUNCTIONS[fn].arity


def test_functions(run: Runner) -> None:
    """All functions in one kernel: every one is right where its neighbours are."""
    c = Code(ORDER)
    b, i, d = c.coordinate("b"), c.coordinate("i"), c.coordinate("d")
    tensors: list[Arg] = []
    data: dict[str, torch.Tensor] = {}
    expected: dict[str, tuple[str, torch.Tensor]] = {}
    names = [*FUNCTIONS, "copy"]
    for n, fn in enumerate(names):
        loaded = []
        for k, kind in enumerate(operands(fn)):
            name = f"x{n}_{k}"
            data[name] = values(kind, fn, 7 * n + k)
            tensors.append(Arg(name, 3, STORED[kind][0]))
            loaded.append(c.load(f"v{n}_{k}", name, b, i, d, dtype=kind))
        y = c.map(f"y{n}", fn, *loaded)
        storage, dtype = STORED[y.dtype]
        tensors.append(Arg(f"out{n}", 3, storage, True))
        c.store(f"out{n}", b, i, d, value=y)
        data[f"out{n}"] = torch.zeros(2, 11, 20, dtype=dtype)
        wide = [data[f"x{n}_{k}"].double() if t == "float" else data[f"x{n}_{k}"] for k, t in enumerate(operands(fn))]
        expected[f"out{n}"] = (fn, TRUTH[fn](*wide))
    run(plan((c.region,), tuple(tensors)), data, {}, {"B": 2, "N": 11, "M": 0})
    for name, (fn, truth) in expected.items():
        assert (data[name].double() - truth.double()).abs().max() <= 3e-6 * truth.double().abs().max().clamp(min=1), fn


def test_scalars_and_types_mix(run: Runner) -> None:
    """Numbers beside vectors, ints beside floats, truth values as numbers; coordinates of every kind of rank."""
    c = Code(ORDER)
    b, i, d = c.coordinate("b"), c.coordinate("i"), c.coordinate("d")
    n, half, flag = c.size("N"), c.const("half", 0.5), c.param("flag", "bool")
    odd = c.map("odd", "==", c.map("rest", "%", c.map("far", "-", i, n), c.const("two", 2)), c.const("one", 1))
    y = c.map("y", "+", c.map("a", "*", half, d), c.map("o", "float", odd))
    y = c.map("z", "+", y, c.map("bi", "//", c.map("neg", "neg", i), c.const("three", 3)))
    y = c.map("w", "select", c.map("both", "and", flag, c.map("first", "<", b, c.const("k", 1))), y, c.map("m", "neg", y))
    c.store("out", b, i, d, value=y)
    out = torch.full((2, 11, 20), torch.nan)
    run(
        plan((c.region,), (Arg("out", 3, "f32", True),), params=(("flag", "bool"),)),
        {"out": out},
        {"flag": True},
        {"B": 2, "N": 11, "M": 0},
    )
    bb, ii, dd = torch.meshgrid(torch.arange(2), torch.arange(11), torch.arange(20), indexing="ij")
    expected = 0.5 * dd + ((ii - 11) % 2 == 1).float() + torch.div(-ii, 3, rounding_mode="floor")
    torch.testing.assert_close(out, torch.where(bb < 1, expected, -expected))


@pytest.mark.parametrize("storage", ["bf16", "f16"])
def test_conversions(storage: Storage, run: Runner, request: pytest.FixtureRequest) -> None:
    """Every 16-bit number widens exactly; narrowing rounds to nearest, ties to even, as torch does.

    Triton's interpreter widens subnormal numbers of bf16 wrongly: there they are left out.
    """
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[storage]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, -1, 16)
    if request.node.callspec.params["run"] == "triton":
        every = torch.where(every.float().abs() < torch.finfo(dtype).tiny, 0, every)
    g = torch.Generator().manual_seed(0)
    wide = torch.cat([every.float().flatten(), torch.randn(2**14, generator=g) * 1e-5, torch.randn(2**14, generator=g)])
    wide = (wide * (1 + torch.rand(wide.shape, generator=g) * 2**-9)).reshape(1, -1, 16)
    for given, back in ((every, torch.float32), (wide, dtype)):
        c = Code(ORDER)
        b, i, d = c.coordinate("b"), c.coordinate("i"), c.coordinate("d")
        c.store("out", b, i, d, value=c.load("v", "x", b, i, d))
        kinds: tuple[Storage, Storage] = (storage, "f32") if given is every else ("f32", storage)
        out = torch.zeros(given.shape, dtype=back)
        run(plan((c.region,), (Arg("x", 3, kinds[0]), Arg("out", 3, kinds[1], True)), width=16, tile=64), {"x": given, "out": out}, {},
            {"B": 1, "N": given.shape[1], "M": 0})  # fmt: skip
        torch.testing.assert_close(out, given.to(back), rtol=0, atol=0, equal_nan=True)


def fold(c: Code, step: int, states: tuple[State, ...], body: Region, updates: tuple[Value, ...], full: bool = False) -> Fold:
    """One masked phase over all of j."""
    lo, hi = c.const("lo", 0), c.size("M", "end")
    return Fold("j", step, states, c.region, (Phase(lo, hi, body, updates, "full" if full else "masked"),), size="M")


@pytest.mark.parametrize("red", ["sum", "max", "min", "prod"])
def test_reductions(red: str, run: Runner) -> None:
    """Of (tile, fold) along the fold, of (fold, feature) along the fold, and of (tile, feature) along the feature."""
    c = Code(ORDER)
    b, i, d = c.coordinate("b"), c.coordinate("i"), c.coordinate("d")
    x = c.load("x_i", "x", b, i, d)
    c.store("rows", b, i, value=c.reduce("row", red, x, "d"))
    first = c.region
    states = (
        State(Value("a", ("i",), "float"), REDUCERS[red].identity),
        State(Value("z", ("d",), "float"), REDUCERS[red].identity),
    )
    c = Code(ORDER)
    j = c.coordinate("j")
    live, identity = c.map("live", "<", j, c.size("M")), c.const("identity", REDUCERS[red].identity)
    p = c.load("p_ij", "p", b, i, j)
    a = c.reduce("a_block", red, c.map("p_live", "select", live, p, identity), "j")
    y = c.load("y_j", "y", b, j, d)
    z = c.reduce("z_block", red, c.map("y_live", "select", live, y, identity), "j")
    combine = {"sum": "+", "prod": "*"}.get(red, red)
    updates = (c.map("a_new", combine, states[0].value, a), c.map("z_new", combine, states[1].value, z))
    loop = fold(Code(ORDER), 16, states, c.region, updates)
    c = Code(ORDER)
    c.store("a", b, i, value=states[0].value)
    c.store("z", b, i, d, value=states[1].value)
    tensors = (
        *tuple(Arg(n, 3, "f32") for n in "xpy"),
        Arg("rows", 2, "f32", True),
        Arg("a", 2, "f32", True),
        Arg("z", 3, "f32", True),
    )
    g = torch.Generator().manual_seed(0)
    data = {n: 1 + 0.2 * torch.randn(s, generator=g) for n, s in (("x", (2, 11, 20)), ("p", (2, 11, 37)), ("y", (2, 37, 20)))}
    outs = {
        "rows": torch.full((2, 11), torch.nan),
        "a": torch.full((2, 11), torch.nan),
        "z": torch.full((2, 11, 20), torch.nan),
    }
    run(plan((first, loop, c.region), tensors), {**data, **outs}, {}, {"B": 2, "N": 11, "M": 37})
    calls: dict[str, Callable[[torch.Tensor, int], torch.Tensor]]
    calls = {"sum": torch.sum, "max": torch.amax, "min": torch.amin, "prod": torch.prod}
    call = calls[red]
    torch.testing.assert_close(outs["rows"], call(data["x"], -1))
    torch.testing.assert_close(outs["a"], call(data["p"], -1))
    torch.testing.assert_close(outs["z"], call(data["y"], 1)[:, None].expand(2, 11, 20))


def test_additive_scores(run: Runner) -> None:
    """``o[i] = sum[j] sum[d] tanh(q[i, d] + k[j, d]) * w[d]``: three ranks in a map, and no block of three ranks."""
    c = Code(ORDER)
    b, i, d = c.coordinate("b"), c.coordinate("i"), c.coordinate("d")
    q, w = c.load("q_i", "q", b, i, d), c.load("w_d", "w", d)
    first, state = c.region, State(Value("o", ("i",), "float"), 0.0)
    c = Code(ORDER)
    j = c.coordinate("j")
    k = c.load("k_j", "k", b, j, d)
    s = c.reduce("s", "sum", c.map("t", "*", c.map("h", "tanh", c.map("qk", "+", q, k)), w), "d")
    s = c.map("s_live", "select", c.map("live", "<", j, c.size("M")), s, c.const("zero", 0.0))
    update = c.map("o_new", "+", state.value, c.reduce("o_block", "sum", s, "j"))
    loop = fold(Code(ORDER), 16, (state,), c.region, (update,))
    c = Code(ORDER)
    c.store("out", b, i, value=state.value)
    tensors = (Arg("q", 3, "f32"), Arg("k", 3, "f32"), Arg("w", 1, "f32"), Arg("out", 2, "f32", True))
    g = torch.Generator().manual_seed(0)
    data = {n: torch.randn(s, generator=g) for n, s in (("q", (2, 11, 20)), ("k", (2, 37, 20)), ("w", (20,)))}
    out = torch.full((2, 11), torch.nan)
    run(plan((first, loop, c.region), tensors), {**data, "out": out}, {}, {"B": 2, "N": 11, "M": 37})
    expected = (torch.tanh(data["q"][:, :, None] + data["k"][:, None]) * data["w"]).sum((-1, -2))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)


def test_tables(run: Runner) -> None:
    """A look-up at ``j - i + N - 1``, an index from an int table, a clamped one, and points that must not be read."""
    c = Code(ORDER)
    b, i = c.coordinate("b"), c.coordinate("i")
    region, state = c.region, State(Value("o", ("i",), "float"), 0.0)
    c = Code(ORDER)
    j, n, m = c.coordinate("j"), c.size("N"), c.size("M")
    live = c.map("live", "<", j, m)
    at = c.map("at", "+", c.map("gap", "-", j, i), c.map("last", "-", n, c.const("one", 1)))
    bias = c.load("bias_ij", "bias", b, at, where=live)
    paged = c.load("value_j", "value", b, c.load("page_j", "page", j, dtype="int"))
    wide = c.load("wide_ij", "bias", b, c.map("wild", "*", c.map("d2", "-", j, i), c.const("nine", 9)), clamp=(1,))
    total = c.map("total", "+", c.map("pair", "+", bias, paged), wide)
    share = c.reduce("share", "sum", c.map("seen", "select", live, total, c.const("zero", 0.0)), "j")
    update = c.map("o_new", "+", state.value, share)
    loop = fold(Code(ORDER), 16, (state,), c.region, (update,))
    c = Code(ORDER)
    c.store("out", b, i, value=state.value)
    tensors = (Arg("bias", 2, "f32"), Arg("value", 2, "f32"), Arg("page", 1, "i64"), Arg("out", 2, "f32", True))
    g = torch.Generator().manual_seed(0)
    data = {
        "bias": torch.randn(2, 11 + 37 - 1, generator=g),
        "value": torch.randn(2, 5, generator=g),
        "page": torch.arange(37) % 5,
    }
    out = torch.full((2, 11), torch.nan)
    run(plan((region, loop, c.region), tensors), {**data, "out": out}, {}, {"B": 2, "N": 11, "M": 37})
    gap = torch.arange(37) - torch.arange(11)[:, None]
    expected = data["bias"][:, gap + 10] + data["value"][:, None, data["page"]] + data["bias"][:, (9 * gap).clamp(0, 46)]
    torch.testing.assert_close(out, expected.sum(-1), rtol=1e-5, atol=1e-4)


def test_feature_products_and_states_that_move_together(run: Runner) -> None:
    """Fibonacci by two states that swap, and a state over two feature ranks: ``S[d, e] = sum[j] k[j, d] v[j, e]; o = q S``."""
    order = ("i", "j", "d", "e")
    c = Code(order)
    b, i, d, e = (c.coordinate(x) for x in "bide")
    q = c.load("q_i", "q", b, i, d)
    first = c.region
    kv = State(Value("kv", ("d", "e"), "float"), 0.0)
    x, y = State(Value("x", (), "float"), 0.0), State(Value("y", (), "float"), 1.0)
    c = Code(order)
    j = c.coordinate("j")
    k, v = c.load("k_j", "k", b, j, d), c.load("v_j", "v", b, j, e)
    k = c.map("k_or_0", "select", c.map("exists", "<", j, c.size("M")), k, c.const("zero", 0.0))
    updates = (c.dot("kv_new", k, v, "j", kv.value), y.value, c.map("y_new", "+", x.value, y.value))
    loop = fold(Code(order), 8, (kv, x, y), c.region, updates)
    c = Code(order)
    o = c.map("o", "*", c.dot("o_sum", q, kv.value, "d"), x.value)
    c.store("out", b, i, e, value=o)
    features = (Block("d", 20, 20), Block("e", 9, 9))
    tensors = (Arg("q", 3, "f32"), Arg("k", 3, "f32"), Arg("v", 3, "f32"), Arg("out", 3, "f32", True))
    whole = KernelPlan("linear", "", (Block("b", "B", 1),), Block("i", "N", 8), features, tensors, (), ("B", "N", "M"),
                       (first, loop, c.region))  # fmt: skip
    g = torch.Generator().manual_seed(0)
    data = {n: torch.randn(s, generator=g) for n, s in (("q", (2, 11, 20)), ("k", (2, 37, 20)), ("v", (2, 37, 9)))}
    out = torch.full((2, 11, 9), torch.nan)
    run(whole, {**data, "out": out}, {}, {"B": 2, "N": 11, "M": 37})
    expected = data["q"] @ (data["k"].mT @ data["v"]) * 5  # five blocks: 0 1 1 2 3 5
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


def test_stores_inside_a_loop(run: Runner) -> None:
    """Blocks of the scores themselves, with a column offset: points that do not exist are not written."""
    c = Code(ORDER)
    b, i = c.coordinate("b"), c.coordinate("i")
    region = c.region
    c = Code(ORDER)
    j = c.coordinate("j")
    c.store("out", b, i, c.map("right", "+", j, c.const("two", 2)), value=c.map("s", "-", c.map("f", "float", i), j))
    c.store("alive", b, i, j, value=c.map("live", "<=", j, i))
    loop = fold(Code(ORDER), 16, (), c.region, ())
    out, alive = torch.full((2, 11, 40), torch.nan), torch.zeros(2, 11, 37, dtype=torch.bool)
    tensors = (Arg("out", 3, "f32", True), Arg("alive", 3, "bool", True))
    run(plan((region, loop), tensors), {"out": out, "alive": alive}, {}, {"B": 2, "N": 11, "M": 37})
    gap = torch.arange(11.0)[:, None] - torch.arange(37.0)
    torch.testing.assert_close(out[:, :, 2:39], gap.expand(2, 11, 37))
    assert out[:, :, :2].isnan().all()
    assert out[:, :, 39:].isnan().all()
    assert torch.equal(alive[0], gap >= 0)


def test_without_a_tile(run: Runner) -> None:
    """One program a point: a sum over all keys."""
    c = Code(("j",))
    b = c.coordinate("b")
    region, state = c.region, State(Value("total", (), "float"), 0.0)
    c = Code(("j",))
    j = c.coordinate("j")
    x_j = c.load("x_j", "x", b, j)
    update = c.map("total_new", "+", state.value, c.reduce("block", "sum", x_j, "j"))
    loop = fold(Code(("j",)), 16, (state,), c.region, (update,), full=True)
    c = Code(("j",))
    c.store("out", b, value=c.map("root", "sqrt", state.value))
    tensors = (Arg("x", 2, "f32"), Arg("out", 1, "f32", True))
    whole = KernelPlan("total", "", (Block("b", "B", 1),), None, (), tensors, (), ("B", "M"), (region, loop, c.region))
    x = torch.rand(3, 48)
    out = torch.full((3,), math.nan)
    run(whole, {"x": x, "out": out}, {}, {"B": 3, "M": 48})
    torch.testing.assert_close(out, x.sum(-1).sqrt())


def test_copies_are_maps(run: Runner) -> None:
    """An update that is narrower than its state fills it."""
    c = Code(ORDER)
    b, i = c.coordinate("b"), c.coordinate("i")
    region, state = c.region, State(Value("last", ("i",), "float"), 0.0)
    c = Code(ORDER)
    update = c.map("start", "float", c.size("j.lo"))
    loop = fold(Code(ORDER), 16, (state,), c.region, (update,))
    end = Map(Value("copied", ("i",), "float"), "copy", (state.value,))
    c = Code(ORDER)
    c.ops.append(end)
    c.store("out", b, i, value=end.out)
    out = torch.full((2, 11), torch.nan)
    run(plan((region, loop, c.region), (Arg("out", 2, "f32", True),)), {"out": out}, {}, {"B": 2, "N": 11, "M": 37})
    assert (out == 32).all()
