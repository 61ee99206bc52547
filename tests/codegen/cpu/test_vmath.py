"""The vector functions against float64: errors in units in the last place over their whole range, and special operands."""

import ctypes
import math
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from einfuse.codegen.cpu.build import find_compiler
from einfuse.codegen.cpu.names import HEADERS

pytestmark = pytest.mark.optimised

Apply = Callable[..., torch.Tensor]
FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[float, float], float]] = {
    "exponential": (torch.exp, (-104, 89), 1.5),
    "exponential2": (torch.exp2, (-149, 128), 1.5),
    "logarithm": (torch.log, (1e-38, 100), 1.5),
    "logarithm2": (torch.log2, (1e-38, 100), 2),
    "logarithm1p": (torch.log1p, (-0.999, 10), 2),
    "hyperbolic_tangent": (torch.tanh, (-10, 10), 2),
    "logistic": (torch.sigmoid, (-80, 30), 1.5),
    "soft_plus": (lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), (-80, 30), 2),
    "reciprocal_root": (torch.rsqrt, (1e-30, 100), 1.5),
    "error_function": (torch.erf, (-5, 5), 1.5),
    "sine": (torch.sin, (-100, 100), 1.5),
    "cosine": (torch.cos, (-100, 100), 1.5),
}
WAVES = ("sine", "cosine")


@pytest.fixture(scope="module", params=[(), ("-mno-avx512f",)], ids=["machine", "narrower"])
def apply(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Apply:
    """All functions in one library: ``apply(name, x)``; built for this machine, and for one with half as wide vectors."""
    if request.param and platform.machine() != "x86_64":
        pytest.skip("the option is one of x86-64")
    text = "#include <cmath>\n#include <cstdint>\nusing T = float; using I = int32_t;\n"
    text += "".join(HEADERS[h].read_text() for h in ("vector", "hash", "vmath", "vmath_f32"))
    for name in FUNCTIONS:
        text += f'extern "C" void run_{name}(float* x, long n) {{ for (long k = 0; k < n; k += W) store(x + k, {name}(load(x + k))); }}\n'
    text += 'extern "C" void run_power(float* x, float* y, long n) {'
    text += " for (long k = 0; k < n; k += W) store(x + k, power(load(x + k), load(y + k))); }\n"
    path: Path = tmp_path_factory.mktemp("vmath") / "vmath.so"
    flags = [
        "-std=c++20",
        "-O2",
        "-march=native",
        *request.param,
        "-fno-math-errno",
        "-ffp-contract=fast",
        "-w",
        "-shared",
        "-fPIC",
    ]
    subprocess.run([find_compiler(), *flags, "-x", "c++", "-", "-o", str(path)], input=text, text=True, check=True)
    library = ctypes.CDLL(str(path))

    def call(name: str, *args: torch.Tensor) -> torch.Tensor:
        n = len(args[0])
        held = [torch.cat([x, torch.zeros(-n % 16)]).contiguous() for x in args]
        getattr(library, f"run_{name}")(*(ctypes.c_void_p(x.data_ptr()) for x in held), ctypes.c_long(len(held[0])))
        return held[0][:n]

    return call


def points(lo: float, hi: float) -> torch.Tensor:
    """Even steps over the range, and steps in the exponent on both sides of 0."""
    even = torch.linspace(lo, hi, 200_000)
    small = torch.logspace(-30, math.log10(max(abs(lo), hi)), 50_000, dtype=torch.float64).float()
    every = torch.cat([even, small, -small])
    return every[(every >= lo) & (every <= hi)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(name: str, apply: Apply) -> None:
    truth, (lo, hi), bound = FUNCTIONS[name]
    x = points(lo, hi)
    expected = truth(x.double())
    keep = expected.abs().float().isfinite()
    x, expected = x[keep], expected[keep]
    _, exponent = torch.frexp(expected.float())
    ulp = torch.ldexp(torch.ones_like(expected), exponent.clamp(min=-125) - 24)
    error = (apply(name, x).double() - expected).abs() / ulp
    assert error.max() <= bound, f"{error.max():.3f} ulp at {x[error.argmax()]}"


@pytest.mark.parametrize("name", WAVES)
def test_large_angles(name: str, apply: Apply) -> None:
    """Positions far along a sequence, on both sides of where the C library takes over, and near zeros of the function."""
    x = torch.cat(
        [
            torch.linspace(-1e6, 1e6, 300_001),
            torch.linspace(0.99e6, 4e6, 1000),
            (torch.arange(1, 300_000) * (math.pi / 2)).float(),
        ]
    )
    expected = FUNCTIONS[name][0](x.double())
    _, exponent = torch.frexp(expected.float())
    error = (apply(name, x).double() - expected).abs() / torch.ldexp(torch.ones_like(expected), exponent.clamp(min=-125) - 24)
    assert error.max() <= 1.5, f"{error.max():.3f} ulp at {x[error.argmax()]}"


@pytest.mark.parametrize("name", [*FUNCTIONS, "power"])
def test_a_lane_does_not_depend_on_its_neighbours(name: str, apply: Apply) -> None:
    """What a mask hides, or another token brings, shares a vector with what is seen."""
    lo, hi = FUNCTIONS[name][1] if name in FUNCTIONS else (0, 9)
    x = torch.rand(4096, generator=torch.Generator().manual_seed(2)) * (hi - lo) + lo
    more = (x.flip(0) / hi,) if name == "power" else ()
    seen = torch.arange(4096) % 3 == 0
    alone = apply(name, x, *more)[seen]
    for other in (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-42, 0.0):
        assert torch.equal(apply(name, torch.where(seen, x, other), *more)[seen], alone), other


def test_powers(apply: Apply) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.rand(200_000, generator=generator) * 4, torch.logspace(-44, 38, 20_000, dtype=torch.float64).float()])
    y = torch.randn(len(x), generator=generator) * torch.logspace(-3, 2, len(x))
    x = torch.cat([x, -x])
    y = torch.cat([y, y.round()])
    expected = x.double() ** y.double()
    keep = expected.float().isfinite()
    x, y, expected = x[keep], y[keep], expected[keep]
    _, exponent = torch.frexp(expected.float())
    error = (apply("power", x, y).double() - expected).abs() / torch.ldexp(
        torch.ones_like(expected), exponent.clamp(min=-125) - 24
    )
    assert error.max() <= 1.5, f"{error.max():.3f} ulp at {x[error.argmax()]} ^ {y[error.argmax()]}"


def test_powers_of_special_operands(apply: Apply) -> None:
    one = torch.tensor(
        [
            math.nan,
            math.inf,
            -math.inf,
            0.0,
            -0.0,
            1.0,
            -1.0,
            2.0,
            -2.0,
            0.5,
            -0.5,
            3.0,
            -3.0,
            2.5,
            1e30,
            -1e30,
            1e-42,
            16777217.0,
        ]
    )
    x, y = (a.flatten() for a in torch.meshgrid(one, one, indexing="ij"))
    expected = (x.double() ** y.double()).float()
    torch.testing.assert_close(apply("power", x, y), expected, rtol=2e-7, atol=1e-44, equal_nan=True)
    zero = expected == 0
    assert torch.equal(apply("power", x, y)[zero].signbit(), expected[zero].signbit())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_operands(name: str, apply: Apply) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 3e38, -3e38, 1.0, -1.0, 1e-42])
    expected = FUNCTIONS[name][0](x.double()).float()
    if name in WAVES:  # the argument reduction of huge operands is the C library's
        x, expected = x[:5], expected[:5]
    torch.testing.assert_close(apply(name, x), expected, rtol=1e-6, atol=1e-44, equal_nan=True)
