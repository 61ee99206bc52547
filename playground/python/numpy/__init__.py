"""As much of numpy as the front end asks for, over Python lists: no registry has numpy for a browser, and a picture has 256 tiles.

Only the page puts it on the path. The tests run the front end on it beside the real one, and compare.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

BOOL, INT, FLOAT = "b", "i", "f"


class dtype:  # numpy's name
    """The kind of the elements; calling it makes a number."""

    def __init__(self, kind: str, make: Callable[[Any], Any]) -> None:
        self.kind, self.make = kind, make

    def __call__(self, x: Any = 0) -> Any:
        return self.make(x)


int64 = int32 = int8 = uint8 = dtype(INT, int)
float64 = dtype(FLOAT, float)


class bool_:
    """No element is of this class: truth values are Python's."""


class generic:
    """Of no element, either."""


class integer(generic):
    pass


nan, inf, pi, e = math.nan, math.inf, math.pi, math.e
_KINDS = {bool: BOOL, int: INT, float: FLOAT, bool_: BOOL}
_MAKE = {BOOL: bool, INT: int, FLOAT: float}


def _kind(of: Any) -> str:
    return of.kind if isinstance(of, dtype) else _KINDS[of]


class ndarray:
    """``flat`` holds the elements in row-major order."""

    def __init__(self, flat: list[Any], shape: tuple[int, ...], kind: str) -> None:
        self.flat, self.shape, self.kind = flat, shape, kind

    @property
    def size(self) -> int:
        return len(self.flat)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> dtype:
        return dtype(self.kind, _MAKE[self.kind])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[n] for n in range(self.shape[0]))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def item(self) -> Any:
        (one,) = self.flat
        return one

    def tolist(self) -> Any:
        return _nested(self.flat, self.shape)

    def astype(self, of: Any) -> ndarray:
        kind = _kind(of)
        return ndarray(list(map(_MAKE[kind], self.flat)), self.shape, kind)

    def reshape(self, *shape: Any) -> ndarray:
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        if -1 in wanted:
            rest = math.prod(n for n in wanted if n != -1)
            wanted = tuple(self.size // rest if n == -1 else n for n in wanted)
        assert math.prod(wanted) == self.size, f"{self.shape} is not {wanted}"
        return ndarray(self.flat, tuple(wanted), self.kind)

    def transpose(self, *axes: int) -> ndarray:
        axes = tuple(a % self.ndim for a in axes)
        places = _places(self.shape)
        shape = tuple(self.shape[a] for a in axes)
        steps = [places[a] for a in axes]
        return ndarray([self.flat[_at(k, steps)] for k in itertools.product(*map(range, shape))], shape, self.kind)

    def all(self) -> bool:
        return builtins.all(self.flat)

    def any(self) -> bool:
        return builtins.any(self.flat)

    def sum(self, axis: Any = None) -> Any:
        return builtins.sum(self.flat) if axis is None else _along(self, axis, builtins.sum)

    def min(self, axis: Any = None) -> Any:
        return builtins.min(self.flat) if axis is None else _along(self, axis, builtins.min)

    def max(self, axis: Any = None) -> Any:
        return builtins.max(self.flat) if axis is None else _along(self, axis, builtins.max)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, ndarray) and key.kind == BOOL:
            return ndarray(
                [x for x, k in zip(self.flat, _spread(key, self.shape), strict=True) if k], (builtins.sum(key.flat),), self.kind
            )
        starts, shape, steps = 0, [], []
        places, axis = _places(self.shape), 0
        for k in _expanded(key, self.ndim):
            if k is None:
                shape.append(1)
                steps.append(0)
            elif isinstance(k, slice):
                found = range(*k.indices(self.shape[axis]))
                starts += found.start * places[axis]
                shape.append(len(found))
                steps.append(found.step * places[axis])
                axis += 1
            else:
                starts += (int(k) % self.shape[axis]) * places[axis]
                axis += 1
        found = [self.flat[starts + _at(k, steps)] for k in itertools.product(*map(range, shape))]
        return ndarray(found, tuple(shape), self.kind) if shape else found[0]

    def __setitem__(self, key: Any, value: Any) -> None:
        numbers = ndarray(list(range(self.size)), self.shape, INT)[key]
        places = numbers if isinstance(numbers, ndarray) else asarray(numbers)
        for n, x in zip(places.flat, _spread(asarray(value), places.shape), strict=True):
            self.flat[n] = x


def _expanded(key: Any, ndim: int) -> list[Any]:
    keys = list(key) if isinstance(key, tuple) else [key]
    missing = ndim - builtins.sum(k is not None and k is not Ellipsis for k in keys)
    full = [slice(None)] * missing
    place = next((n for n, k in enumerate(keys) if k is Ellipsis), None)
    return keys + full if place is None else keys[:place] + full + keys[place + 1 :]


def _places(shape: tuple[int, ...]) -> list[int]:
    """How far neighbours along every axis lie apart."""
    return [math.prod(shape[n + 1 :]) for n in range(len(shape))]


def _at(index: Sequence[int], steps: Sequence[int]) -> int:
    return builtins.sum(map(operator.mul, index, steps))


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    step = math.prod(shape[1:])
    return [_nested(flat[n * step : (n + 1) * step], shape[1:]) for n in range(shape[0])]


def _along(x: ndarray, axis: Any, join: Callable[[list[Any]], Any]) -> ndarray:
    gone = {a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))}
    kept = [n for n in range(x.ndim) if n not in gone]
    places = _places(x.shape)
    inner = [range(x.shape[n]) for n in sorted(gone)]
    offsets = [_at(k, [places[n] for n in sorted(gone)]) for k in itertools.product(*inner)]
    starts = [_at(k, [places[n] for n in kept]) for k in itertools.product(*(range(x.shape[n]) for n in kept))]
    flat = [join([x.flat[s + o] for o in offsets]) for s in starts]
    return ndarray(flat, tuple(x.shape[n] for n in kept), INT if x.kind == BOOL else x.kind)


def asarray(x: Any, of: Any = None) -> ndarray:
    if isinstance(x, ndarray):
        return x if of is None or _kind(of) == x.kind else x.astype(of)
    shape: tuple[int, ...] = ()
    flat = [x]
    while flat and isinstance(flat[0], list | tuple | range | ndarray):
        rows = [list(f) for f in flat]
        shape += (len(rows[0]),)
        flat = [y for row in rows for y in row]
    kinds = {type(f) for f in flat}
    kind = _kind(of) if of is not None else FLOAT if float in kinds else INT if int in kinds else BOOL if kinds else FLOAT
    return ndarray(list(map(_MAKE[kind], flat)), shape, kind)


array = asarray


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    out = []
    for sizes in itertools.zip_longest(*(reversed(s) for s in shapes), fillvalue=1):
        wide = {n for n in sizes if n != 1}
        assert len(wide) < 2, f"{shapes} do not fit"
        out.append(wide.pop() if wide else 1)
    return tuple(reversed(out))


def _spread(x: ndarray, shape: tuple[int, ...]) -> list[Any]:
    """The elements repeated to a shape."""
    if x.shape == shape:
        return x.flat
    if x.size == 1:
        return x.flat * math.prod(shape)
    own = (1,) * (len(shape) - x.ndim) + x.shape
    steps = [0 if n == 1 else p for n, p in zip(own, _places(own), strict=True)]
    return [x.flat[_at(k, steps)] for k in itertools.product(*map(range, shape))]


def broadcast_to(x: Any, shape: tuple[int, ...]) -> ndarray:
    held = asarray(x)
    return ndarray(_spread(held, tuple(shape)), tuple(shape), held.kind)


def broadcast_arrays(*arrays: Any) -> list[ndarray]:
    held = list(map(asarray, arrays))
    shape = broadcast_shapes(*(x.shape for x in held))
    return [broadcast_to(x, shape) for x in held]


# -- functions of elements -------------------------------------------------------------------------------------------------------------


def _applied(op: str, *args: Any) -> Any:
    """As floating point has it; the compiler's own table says what every function is."""
    from einfuse.ir.points import applied

    return applied(op, *args)


def _mapped(fn: Callable[..., Any], kind: str | None, *args: Any) -> Any:
    held = list(map(asarray, args))
    shape = broadcast_shapes(*(x.shape for x in held))
    found = kind or builtins.max((x.kind for x in held), key="bif".index)
    flat = list(map(fn, *(_spread(x, shape) for x in held)))
    return ndarray([_MAKE[found](x) for x in flat], shape, found)


def _numbers(op: str, kind: str | None = None) -> Callable[..., Any]:
    return partial(_mapped, partial(_applied, op), kind)


exp, log, log1p, sqrt, tanh, sin, cos, exp2, log2 = (
    _numbers(n, FLOAT) for n in ("exp", "log", "log1p", "sqrt", "tanh", "sin", "cos", "exp2", "log2")
)
true_divide, power, floor_divide, remainder = (_numbers("/", FLOAT), _numbers("^", FLOAT), _numbers("//"), _numbers("%"))
maximum, minimum, sign = _numbers("max"), _numbers("min"), _numbers("sign")
add, subtract, multiply = (partial(_mapped, f, None) for f in (operator.add, operator.sub, operator.mul))
negative, abs = (partial(_mapped, f, None) for f in (operator.neg, abs))
absolute = abs
less, less_equal, greater, greater_equal, equal, not_equal = (
    partial(_mapped, f, BOOL) for f in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
)
logical_and, logical_or = (partial(_mapped, f, BOOL) for f in (lambda a, b: a and b, lambda a, b: a or b))
logical_not = partial(_mapped, operator.not_, BOOL)
isfinite, isnan = partial(_mapped, math.isfinite, BOOL), partial(_mapped, math.isnan, BOOL)
floor = partial(_mapped, lambda x: float(math.floor(x)) if math.isfinite(x) else x, FLOAT)
heaviside = partial(_mapped, lambda x, h: x if math.isnan(x) else h if x == 0 else float(x > 0), FLOAT)
logaddexp = partial(_mapped, lambda a, b: builtins.max(a, b) + math.log1p(math.exp(-math.fabs(a - b))), FLOAT)


def where(condition: Any, a: Any, b: Any) -> ndarray:
    kind = builtins.max((asarray(x).kind for x in (a, b)), key="bif".index)
    return _mapped(lambda c, x, y: x if c else y, kind, condition, a, b)  # type: ignore[no-any-return]


def clip(x: Any, least: Any, most: Any) -> ndarray:
    return minimum(maximum(x, least), most)  # type: ignore[no-any-return]


def vectorize(fn: Callable[..., Any], otypes: Sequence[Any]) -> Callable[..., Any]:
    return partial(_mapped, fn, _kind(otypes[0]))


for _name, _fn in {
    "add": add, "sub": subtract, "mul": multiply, "truediv": true_divide, "floordiv": floor_divide, "mod": remainder, "pow": power,
    "and": logical_and, "or": logical_or, "lt": less, "le": less_equal, "gt": greater, "ge": greater_equal,
}.items():  # fmt: skip
    setattr(ndarray, f"__{_name}__", lambda a, b, fn=_fn: fn(a, b))
    setattr(ndarray, f"__r{_name}__", lambda a, b, fn=_fn: fn(b, a))
for _name, _fn in {"eq": equal, "ne": not_equal}.items():
    setattr(ndarray, f"__{_name}__", lambda a, b, fn=_fn: fn(a, b))
for _name, _fn in {"neg": negative, "invert": logical_not, "abs": abs}.items():
    setattr(ndarray, f"__{_name}__", lambda a, fn=_fn: fn(a))


# -- arrays made and reduced -----------------------------------------------------------------------------------------------------------


def full(shape: Any, value: Any, of: Any = None) -> ndarray:
    wanted = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    kind = _kind(of) if of is not None else asarray(value).kind
    return ndarray([_MAKE[kind](value)] * math.prod(wanted), wanted, kind)


def zeros(shape: Any, of: Any = float) -> ndarray:
    return full(shape, 0, of)


def ones(shape: Any, of: Any = float) -> ndarray:
    return full(shape, 1, of)


def zeros_like(x: ndarray) -> ndarray:
    return ndarray([_MAKE[x.kind](0)] * x.size, x.shape, x.kind)


def arange(*bounds: int, dtype: Any = int) -> ndarray:
    return asarray(list(range(*bounds)), dtype)


def linspace(least: float, most: float, count: int) -> ndarray:
    return asarray([least + (most - least) * n / (count - 1) for n in range(count)], float)


def indices(shape: tuple[int, ...]) -> list[ndarray]:
    every = list(itertools.product(*map(range, shape)))
    return [ndarray([k[n] for k in every], tuple(shape), INT) for n in range(len(shape))]


def count_nonzero(x: Any) -> int:
    return builtins.sum(map(bool, asarray(x).flat))


def sum_(x: Any, axis: Any = None) -> Any:
    return reduce(add, x) if isinstance(x, list) and axis == 0 else asarray(x).sum(axis)


def amin(x: Any, axis: Any = None) -> Any:
    return reduce(minimum, x) if isinstance(x, list | tuple) and axis == 0 else asarray(x).min(axis)


def amax(x: Any, axis: Any = None) -> Any:
    return reduce(maximum, x) if isinstance(x, list | tuple) and axis == 0 else asarray(x).max(axis)


def allclose(a: Any, b: Any, rtol: float, atol: float) -> bool:
    return bool((abs(asarray(a) - b) <= abs(asarray(b)) * rtol + atol).all())


@contextlib.contextmanager
def errstate(**kinds: str) -> Iterator[None]:
    """Nothing here warns."""
    yield


from numpy import linalg as linalg  # noqa: E402
from numpy import random as random  # noqa: E402

globals().update(sum=sum_, min=amin, max=amax)
