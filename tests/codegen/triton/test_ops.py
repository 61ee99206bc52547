"""Single operations in small plans: gathers, masks, reductions over padded ranks, states, stores inside a loop, odd plans."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from plans import Code, poisoned

from einfuse.codegen.plan import Arg, Block, Fold, KernelPlan, Load, Phase, Region, State, Storage, Value
from einfuse.codegen.precision import Compute
from einfuse.codegen.triton import build, emit
from einfuse.ir import DType

ORDER = ("i", "j", "d")


def plan_of(
    code: Code | None,
    tensors: tuple[Arg, ...],
    steps: tuple[Region | Fold, ...] | None = None,
    features: tuple[Block, ...] = (),
    sizes: tuple[str, ...] = ("N", "M"),
    params: tuple[tuple[str, DType], ...] = (),
    compute: Compute = "f32",
    **more: Any,
) -> KernelPlan:
    tile = more.pop("tile", Block("i", "N", 16))
    if steps is None:
        assert code is not None
        steps = (code.region,)
    return KernelPlan("small", "one op", (), tile, features, tensors, params, sizes, steps, compute, **more)


def run(
    plan: KernelPlan, tensors: dict[str, torch.Tensor], directory: Path, params: Mapping[str, float] | None = None, **sizes: int
) -> None:
    build(plan, emit(plan), directory)(tensors, params or {}, sizes)


def fold(
    code: Code,
    states: Iterable[State] = (),
    updates: Iterable[Value] = (),
    before: Code | None = None,
    hi: Value | None = None,
    lo: Value | None = None,
) -> Fold:
    """A loop over j from 0 (or ``lo``) to M in masked steps of 16."""
    bounds = before or Code(ORDER)
    lo, hi = lo or bounds.const("lo", 0), hi or bounds.size("M")
    return Fold("j", 16, tuple(states), bounds.region, (Phase(lo, hi, code.region, tuple(updates), "masked"),), size="M")


def test_clamped_gather(tmp_path: Path) -> None:
    """A table read at a computed index that leaves it on both sides."""
    c = Code(ORDER)
    i, j = c.coordinate("i"), c.coordinate("j")
    at = c.map("at", "+", c.map("gap", "-", j, i), c.const("shift", 4))
    c.store("y", i, j, value=c.load("bias", "bias", at, clamp=(0,)))
    plan = plan_of(None, (Arg("bias", 1, "f32"), Arg("y", 2, "f32", True)), (fold(c),))
    bias, y = torch.arange(9.0), poisoned((21, 19), torch.float32)
    run(plan, {"bias": bias, "y": y}, tmp_path, N=21, M=19)
    expected = bias[(torch.arange(19) - torch.arange(21)[:, None] + 4).clamp(0, 8)]
    assert torch.equal(y, expected)


def test_indirection_and_where(tmp_path: Path) -> None:
    """Pages: the index of one load is the value of another; points where the condition is false give 0 and are not read."""
    c = Code(ORDER)
    i, limit = c.coordinate("i"), c.param("limit", "int")
    four = c.const("four", 4)
    page = c.load("page", "page", c.map("block", "//", i, four), dtype="int")
    x = c.load("x", "pool", page, c.map("slot", "%", i, four), where=c.map("seen", "<", i, limit))
    c.store("y", i, value=x)
    plan = plan_of(c, (Arg("page", 1, "i64"), Arg("pool", 2, "f32"), Arg("y", 1, "f32", True)), params=(("limit", "int"),))
    pages, pool, y = torch.tensor([2, 0, 1, 10**6, 10**6]), torch.randn(3, 4), poisoned((19,), torch.float32)
    run(plan, {"page": pages, "pool": pool, "y": y}, tmp_path, {"limit": 11}, N=19, M=0)
    assert torch.equal(y[:11], pool[pages[:3]].flatten()[:11])
    assert (y[11:] == 0).all()


def test_load_of_fewer_ranks_than_its_value(tmp_path: Path) -> None:
    """``where`` may span a rank that the index does not."""
    c = Code(ORDER)
    i, d = c.coordinate("i"), c.coordinate("d")
    below = c.map("below", "<", d, i)
    loaded = c._add(Load(Value("x", ("i", "d"), "float"), "x", (i,), below))
    c.store("y", i, d, value=loaded)
    plan = plan_of(c, (Arg("x", 1, "f32"), Arg("y", 2, "f32", True)), features=(Block("d", 5, 5),))
    x, y = torch.randn(7), poisoned((7, 5), torch.float32)
    run(plan, {"x": x, "y": y}, tmp_path, N=7, M=0)
    assert torch.equal(y, x[:, None].expand(7, 5).tril(-1))


def test_bool_tensors(tmp_path: Path) -> None:
    c = Code(ORDER)
    i, d = c.coordinate("i"), c.coordinate("d")
    flipped = c.map("flipped", "not", c.load("seen", "seen", i, d, dtype="bool"))
    c.store("y", i, d, value=c.map("y", "and", flipped, c.map("late", ">", i, d)))
    c.store("any", i, value=c.reduce("some", "any", flipped, "d"))
    tensors = (Arg("seen", 2, "bool"), Arg("y", 2, "bool", True), Arg("any", 1, "bool", True))
    plan = plan_of(c, tensors, features=(Block("d", 5, 5),))
    seen, y, some = torch.rand(21, 5) < 0.8, poisoned((21, 5), torch.bool), poisoned((21,), torch.bool)
    run(plan, {"seen": seen, "y": y, "any": some}, tmp_path, N=21, M=0)
    assert torch.equal(y, ~seen & (torch.arange(21)[:, None] > torch.arange(5)))
    assert torch.equal(some, ~seen.all(1))


@pytest.mark.parametrize("fn", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("kind", ["float", "int"])
def test_reductions_ignore_padding(fn: str, kind: Literal["float", "int"], tmp_path: Path) -> None:
    """x + 3 is not 0 in the padding of a rank of 5, which is held in a block of 8."""
    c = Code(ORDER)
    i, d = c.coordinate("i"), c.coordinate("d")
    loaded = c.load("x", "x", i, d, dtype=kind)
    shifted = c.map("shifted", "-", loaded, c.const("three", 3 if kind == "int" else 3.0))
    c.store("y", i, value=c.reduce("r", fn, shifted, "d"))
    storage: Storage = "i32" if kind == "int" else "f32"
    plan = plan_of(c, (Arg("x", 2, storage), Arg("y", 1, storage, True)), features=(Block("d", 5, 5),))
    x = torch.randint(-9, 9, (21, 5)).to(torch.int32 if kind == "int" else torch.float32)
    y = poisoned((21,), x.dtype)
    run(plan, {"x": x, "y": y}, tmp_path, N=21, M=0)
    expected = getattr(x - 3, {"max": "amax", "min": "amin"}.get(fn, fn))(1)
    torch.testing.assert_close(y, expected.to(x.dtype))


def test_size_of_a_feature_known_at_launch(tmp_path: Path) -> None:
    c = Code(ORDER)
    i, d = c.coordinate("i"), c.coordinate("d")
    c.store("y", i, value=c.reduce("r", "max", c.map("s", "exp", c.load("x", "x", i, d)), "d"))
    plan = plan_of(c, (Arg("x", 2, "f32"), Arg("y", 1, "f32", True)), features=(Block("d", "M", 16),))
    x, y = -torch.rand(9, 11) - 1, poisoned((9,), torch.float32)
    run(plan, {"x": x, "y": y}, tmp_path, N=9, M=11)
    torch.testing.assert_close(y, x.exp().amax(1))


def test_products_ignore_padding(tmp_path: Path) -> None:
    """Both operands of a matrix product are not 0 (one is inf) in the padding of the contracted rank."""
    c = Code(ORDER)
    i, j, d = map(c.coordinate, "ijd")
    one = c.const("one", 1.0)
    a = c.map("a", "/", one, c.load("p", "p", i, d))
    b = c.map("b", "+", c.load("q", "q", j, d), one)
    c.store("y", i, j, value=c.dot("y", b, a, "d"))
    plan = plan_of(None, (Arg("p", 2, "f32"), Arg("q", 2, "f32"), Arg("y", 2, "f32", True)), (fold(c),), (Block("d", 18, 18),))
    p, q, y = torch.rand(21, 18) + 1, torch.rand(23, 18), poisoned((21, 23), torch.float32)
    run(plan, {"p": p, "q": q, "y": y}, tmp_path, N=21, M=23)
    torch.testing.assert_close(y, (1 / p) @ (q + 1).T)


@pytest.mark.parametrize("storage", ["bf16", "f32"])
def test_vector_product(storage: Storage, tmp_path: Path) -> None:
    """A `Dot` of a block and a vector is a sum."""
    c = Code(ORDER)
    i, d = c.coordinate("i"), c.coordinate("d")
    c.store("y", i, value=c.dot("y", c.load("p", "p", i, d), c.load("q", "q", d), "d"))
    plan = plan_of(
        c, (Arg("p", 2, storage), Arg("q", 1, storage), Arg("y", 1, "f32", True)), features=(Block("d", 5, 5),), narrow=storage
    )
    dtype = torch.bfloat16 if storage == "bf16" else torch.float32
    p, q, y = torch.randn(21, 5).to(dtype), torch.randn(5).to(dtype), poisoned((21,), torch.float32)
    run(plan, {"p": p, "q": q, "y": y}, tmp_path, N=21, M=0)
    torch.testing.assert_close(y, p.float() @ q.float())


def test_states_exchange_values(tmp_path: Path) -> None:
    """Updates are simultaneous: (a, b) := (a + b, a), an int and a bool state beside them."""
    a, b = Value("a", ("i",), "float"), Value("b", ("i",), "float")
    n, hit = Value("n", (), "int"), Value("hit", ("i",), "bool")
    c = Code(ORDER)
    i, lo, hi = c.coordinate("i"), c.size("j.lo"), c.size("j.hi")
    total = c.map("total", "+", a, b)
    count = c.map("count", "+", n, c.map("width", "-", hi, lo))
    found = c.map("found", "or", hit, c.map("same", "==", i, lo))
    states = (State(a, 1.0), State(b, 0.0), State(n, 0.0), State(hit, 0.0))
    loop = fold(c, states, (total, a, count, found))
    c = Code(ORDER)
    i = c.coordinate("i")
    for name, value in (("ya", a), ("yb", b), ("yn", n), ("yhit", hit)):
        c.store(name, i, value=value)
    outs = (Arg("ya", 1, "f32", True), Arg("yb", 1, "f32", True), Arg("yn", 1, "i32", True), Arg("yhit", 1, "bool", True))
    tensors = {
        "ya": torch.empty(20),
        "yb": torch.empty(20),
        "yn": torch.empty(20, dtype=torch.int32),
        "yhit": poisoned((20,), torch.bool),
    }
    run(plan_of(None, outs, (loop, c.region)), tensors, tmp_path, N=20, M=100)
    assert tensors["ya"].unique().tolist() == [21.0]  # 7 blocks of 16: Fibonacci numbers
    assert tensors["yb"].unique().tolist() == [13.0]
    assert tensors["yn"].unique().tolist() == [100]
    assert tensors["yhit"].nonzero().flatten().tolist() == [0, 16]


def test_constant_state_takes_the_shape_of_its_rank(tmp_path: Path) -> None:
    """A state over i whose update has no ranks; the reduction of a constant counts the block."""
    s = Value("s", ("i",), "float")
    c = Code(ORDER)
    loop = fold(c, (State(s, 0.0),), (c.reduce("sixteen", "sum", c.const("one", 1.0), "j"),))
    c = Code(ORDER)
    c.store("y", c.coordinate("i"), value=s)
    y = poisoned((5,), torch.float32)
    run(plan_of(None, (Arg("y", 1, "f32", True),), (loop, c.region)), {"y": y}, tmp_path, N=5, M=20)
    assert y.tolist() == [16.0] * 5


def test_store_inside_a_loop_ends_with_its_rank(tmp_path: Path) -> None:
    """Blocks start at ``lo``; the last one reaches past ``hi`` but not past the size."""
    c = Code(ORDER)
    i, j = c.coordinate("i"), c.coordinate("j")
    c.store("y", i, j, value=c.map("y", "+", c.map("row", "*", i, c.const("hundred", 100)), j))
    before = Code(ORDER)
    loop = fold(c, before=before, lo=before.const("lo", 3), hi=before.const("hi", 24))
    y = poisoned((21, 34), torch.int32)
    run(plan_of(None, (Arg("y", 2, "i32", True),), (loop,)), {"y": y}, tmp_path, N=21, M=30)
    assert torch.equal(y[:, 3:30], (torch.arange(21)[:, None] * 100 + torch.arange(3, 30)).int())
    assert (y[:, :3] == 99).all()
    assert (y[:, 30:] == 99).all()


def test_no_tile_no_ambient(tmp_path: Path) -> None:
    """One program; the sum of a vector into a tensor without axes."""
    total = Value("total", (), "float")
    c = Code(("j",))
    j = c.coordinate("j")
    update = c.map("more", "+", total, c.reduce("part", "sum", c.load("x", "x", j), "j"))
    loop = fold(c, (State(total, 0.0),), (update,))
    c = Code(("j",))
    c.store("y", value=total)
    plan = plan_of(None, (Arg("x", 1, "f32"), Arg("y", 0, "f32", True)), (loop, c.region), tile=None, sizes=("M",))
    x, y = torch.randn(53), torch.tensor(torch.nan)
    run(plan, {"x": x, "y": y}, tmp_path, M=53)
    torch.testing.assert_close(y, x.sum())


@pytest.mark.parametrize("value", [2.5, True, -3])
def test_constants_and_bool_parameters(value: float, tmp_path: Path) -> None:
    c = Code(ORDER)
    flag, constant = c.param("flag", "bool"), c.const("value", value)
    c.store("y", c.coordinate("i"), value=constant)
    c.store("z", c.coordinate("i"), value=c.map("z", "select", flag, constant, c.const("other", 7)))
    kind: Storage = "bool" if isinstance(value, bool) else "f32"
    plan = plan_of(c, (Arg("y", 1, kind, True), Arg("z", 1, "f32", True)), params=(("flag", "bool"),))
    y, z = poisoned((5,), torch.bool if kind == "bool" else torch.float32), torch.empty(5)
    run(plan, {"y": y, "z": z}, tmp_path, {"flag": True}, N=5, M=0)
    assert y.tolist() == [value] * 5
    assert z.tolist() == [float(value)] * 5


def test_fp64_parameters_keep_their_digits(tmp_path: Path) -> None:
    c = Code(ORDER)
    scale = c.param("scale", "float")
    c.store("y", c.coordinate("i"), value=c.map("y", "*", scale, c.map("n", "float", c.size("N"))))
    plan = plan_of(c, (Arg("y", 1, "f64", True),), params=(("scale", "float"),), compute="f64")
    y = poisoned((3,), torch.float64)
    run(plan, {"y": y}, tmp_path, {"scale": 0.1}, N=3, M=0)
    assert y.tolist() == [0.1 * 3] * 3


def test_a_tensor_named_twice_is_one_argument(tmp_path: Path) -> None:
    c = Code(ORDER)
    c.store("y", c.coordinate("i"), value=c.const("two", 2.0))
    plan = plan_of(c, (Arg("y", 1, "f32", True), Arg("y", 1, "f32", True)))
    y = poisoned((5,), torch.float32)
    run(plan, {"y": y}, tmp_path, N=5, M=0)
    assert emit(plan).count("y_ptr,") == 1
    assert y.tolist() == [2.0] * 5


def test_odd_names(tmp_path: Path) -> None:
    """Names of values that Python, Triton or the module itself use."""
    c = Code(ORDER)
    total = c.load("lambda", "x", c.coordinate("i"))
    for name in ("s'", "tl", "program", "tile", "tiles", "N", "m.1", "float"):
        total = c.map(name, "+", total, c.const("one", 1.0))
    c.store("y", c.ops[0].out, value=total)  # type: ignore[union-attr]
    plan = replace(plan_of(c, (Arg("x", 1, "f32"), Arg("y", 1, "f32", True))), name="two words")
    x, y = torch.randn(9), poisoned((9,), torch.float32)
    run(plan, {"x": x, "y": y}, tmp_path, N=9, M=0)
    torch.testing.assert_close(y, x + 8)
