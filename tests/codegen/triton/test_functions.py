"""Every scalar function of the IR, elementwise in a kernel, against its value on Python numbers."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plans import DTYPES, Code

from einfuse.codegen.plan import Arg, Block, KernelPlan, Storage
from einfuse.codegen.precision import Compute
from einfuse.codegen.triton import build, emit
from einfuse.codegen.triton.functions import FORMS
from einfuse.ir import FUNCTIONS, DType

STORAGE: dict[DType, Storage] = {"float": "f32", "int": "i32", "bool": "bool"}
REALS = [-90.0, -8.5, -3.0, -1.0, -0.7, -0.3, -1e-3, -1e-6, 0.0, 1e-6, 2e-3, 0.4, 0.62, 0.63, 1.0, 2.5, 7.0, 40.0, 200.0]
POSITIVE = [1e-6, 0.02, 0.5, 0.99, 1.0, 1.01, 3.0, 77.0, 1e4]
INTS: list[float] = [-17, -8, -7, -1, 0, 1, 3, 7, 8, 25]
DOMAINS: dict[str, list[list[float]]] = {
    **{fn: [POSITIVE] for fn in ("log", "log2", "sqrt", "rsqrt")},
    "log1p": [[-0.9, -0.5, -0.2, -1e-4, -1e-7, 0.0, 1e-7, 1e-3, 0.3, 1.0, 1.5, 100.0]],
    "exp": [[x for x in REALS if x <= 40]],
    "exp2": [[x for x in REALS if x <= 40]],
    "/": [REALS, POSITIVE],
    "^": [POSITIVE, [-2.5, -1.0, 0.0, 0.5, 2.0, 3.7]],
    "//": [INTS, [-5, -3, 2, 7]],
    "%": [INTS, [-5, -3, 2, 7]],
    **{fn: [[*REALS, 1e4, -31415.9]] for fn in ("sin", "cos")},
}


def elementwise(fn: str, takes: tuple[DType, ...], compute: Compute = "f32") -> KernelPlan:
    c = Code(("i",))
    i = c.coordinate("i")
    real: Storage = "f64" if compute == "f64" else "f32"
    kinds = [STORAGE[t] if t != "float" else real for t in takes]
    values = [c.load(f"x{n}", f"x{n}", i, dtype=t) for n, t in enumerate(takes)]
    y = c.map("y", fn, *values)
    c.store("y", i, value=y)
    out = real if y.dtype == "float" else STORAGE[y.dtype]
    tensors = (*(Arg(f"x{n}", 1, k) for n, k in enumerate(kinds)), Arg("y", 1, out, True))
    return KernelPlan("elementwise", fn, (), Block("i", "N", 32), (), tensors, (), ("N",), (c.region,), compute)


def evaluate(plan: KernelPlan, columns: list[list[float]], directory: Path) -> list[float]:
    tensors = {f"x{n}": torch.tensor(x, dtype=torch.float64).to(DTYPES[plan.tensors[n].storage]) for n, x in enumerate(columns)}
    count = len(columns[0])
    tensors["y"] = torch.empty(count, dtype=DTYPES[plan.tensors[-1].storage])
    build(plan, emit(plan), directory)(tensors, {}, {"N": count})
    return tensors["y"].tolist()


def points(fn: str, takes: tuple[DType, ...]) -> list[list[float]]:
    """All combinations of the operands' samples, a column an operand."""
    plain: dict[DType, list[float]] = {"float": REALS, "int": INTS, "bool": [False, True]}
    domains = DOMAINS.get(fn) or [plain[t] for t in takes]
    rows: list[list[float]] = [[]]
    for domain in domains:
        rows = [[*r, x] for r in rows for x in domain]
    return [list(c) for c in zip(*rows, strict=True)]


def types(fn: str) -> tuple[DType, ...]:
    f = FUNCTIONS[fn]
    if fn == "select":
        return ("bool", "float", "float")
    if fn == "==":
        return ("int", "int")
    kind: DType = f.takes if f.takes in ("int", "bool") else "float"
    return (kind,) * f.arity


def as_single(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item() if isinstance(x, float) else x


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_values(fn: str, tmp_path: Path) -> None:
    takes = types(fn)
    columns = points(fn, takes)
    found = evaluate(elementwise(fn, takes), columns, tmp_path)
    for y, *xs in zip(found, *columns, strict=True):
        expected = float(FUNCTIONS[fn].fold(*map(as_single, xs)))
        assert float(y) == pytest.approx(
            expected, rel=4e-6 if fn == "^" else 6e-7, abs=3e-7 if fn in ("sin", "cos") else 1e-38
        ), xs


def test_the_exponential_of_a_large_number_is_as_good_as_that_of_a_small_one(tmp_path: Path) -> None:
    """exp2(x * log2 e) alone would be off by |x| ulp: 1.2e-5 here."""
    xs = [as_single(x / 7) for x in range(-605, 615, 5)]
    found = evaluate(elementwise("exp", ("float",)), [xs], tmp_path)
    assert found == pytest.approx([math.exp(x) for x in xs], rel=2e-7)
    ends = [-math.inf, -3.4e38, -104.5, -100.0, 89.0, 3.4e38, math.inf, math.nan]
    low, most, tiny, small, *high, nothing = evaluate(elementwise("exp", ("float",)), [ends], tmp_path)
    assert (low, most, tiny) == (0, 0, 0)
    assert small == pytest.approx(math.exp(-100.0), abs=2e-45)
    assert high == [math.inf] * 3
    assert math.isnan(nothing)


@pytest.mark.parametrize("fn", ["tanh", "sigmoid"])
def test_short_forms_are_exact_for_16_bits(fn: str, tmp_path: Path) -> None:
    """Relative to the value itself, however small, and at infinities; a thousandth of what fp16 rounds away is 5e-7."""
    near = [s * 2.0 ** (n / 4) for n in range(-120, 28) for s in (-1.0, 1.0)]
    columns = [[*near, *REALS, math.inf, -math.inf, math.nan]]
    plan = replace(elementwise(fn, ("float",)), narrow="bf16")
    assert f"_short_{'tanh' if fn == 'tanh' else 'inverse'}(" in emit(plan)
    *found, high, low, nothing = evaluate(plan, columns, tmp_path)
    assert found == pytest.approx([FUNCTIONS[fn].fold(as_single(x)) for x in columns[0][:-3]], rel=2.5e-6, abs=1e-38)
    assert [high, low] == pytest.approx([1.0, {"tanh": -1.0, "sigmoid": 0.0}[fn]], abs=2e-6)
    assert math.isnan(nothing)


@pytest.mark.parametrize("fn", ["tanh", "log1p", "softplus", "sigmoid", "exp", "erf"])
def test_values_in_double_precision(fn: str, tmp_path: Path) -> None:
    columns = points(fn, ("float",))
    found = evaluate(elementwise(fn, ("float",), "f64"), columns, tmp_path)
    assert found == pytest.approx([FUNCTIONS[fn].fold(x) for x in columns[0]], rel=1e-14, abs=1e-300)


MIXED: list[tuple[str, tuple[DType, ...]]] = [
    ("+", ("int", "float")),
    ("<", ("float", "int")),
    ("/", ("int", "int")),
    ("max", ("int", "int")),
    ("abs", ("int",)),
    ("sign", ("int",)),
    ("floor", ("int",)),
    ("float", ("bool",)),
    ("exp", ("int",)),
    ("==", ("bool", "bool")),
    ("select", ("bool", "int", "float")),
]


@pytest.mark.parametrize(("fn", "takes"), MIXED)
def test_mixed_types(fn: str, takes: tuple[DType, ...], tmp_path: Path) -> None:
    columns: list[list[float]] = points("" if fn == "/" else fn, takes) if fn != "exp" else [[-3, 0, 5]]
    if fn == "/":
        columns = [[-7, 7, 9], [2, -2, 3]]
    found = evaluate(elementwise(fn, takes), columns, tmp_path)
    expected = [float(FUNCTIONS[fn].fold(*map(as_single, xs))) for xs in zip(*columns, strict=True)]
    assert [float(y) for y in found] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("power", [-1, 0.5, 2, 3, -0.5, 2.5])
def test_constant_power(power: float, tmp_path: Path) -> None:
    c = Code(("i",))
    i = c.coordinate("i")
    c.store("y", i, value=c.map("y", "^", c.load("x0", "x0", i), c.const("p", power)))
    plan = KernelPlan(
        "power", "x^p", (), Block("i", "N", 16), (), (Arg("x0", 1, "f32"), Arg("y", 1, "f32", True)), (), ("N",), (c.region,)
    )
    assert evaluate(plan, [POSITIVE], tmp_path) == pytest.approx([x**power for x in POSITIVE], rel=3e-6)


def test_negative_base(tmp_path: Path) -> None:
    found = evaluate(elementwise("^", ("float", "float")), [[-2.0, -2.0, 0.0, -2.0], [3.0, 2.0, 2.0, 0.5]], tmp_path)
    assert found[:3] == pytest.approx([-8.0, 4.0, 0.0])
    assert math.isnan(found[3])


def test_every_function_has_a_form() -> None:
    assert set(FORMS) == {*FUNCTIONS, "copy"}
