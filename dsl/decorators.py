"""Attention from Python functions: score mods and mask mods are called once with symbols, and the trace becomes a syntax tree.

    @score_mod
    def alibi(score, b, h, i, j, *, slope): return score + slope[h] * (j - i)

    @mask_mod
    def window(b, h, i, j, *, size=256): return (j <= i) & (i - j < size)

    attention(alibi, window)                 # the same cascade as the text that says this

Keyword-only arguments are what a call of the attention gives: without a default an input (a tensor where it is indexed, else a number;
annotate it ``int`` or ``bool`` where its use does not tell), with an int or float default a run-time number. Any other default is an
ordinary Python value.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from einfuse.dsl import ast, functions  # noqa: F401  # they make their operations known
from einfuse.dsl.captures import Captures
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.elaborate import elaborate
from einfuse.dsl.modules import prelude
from einfuse.dsl.parse import parse
from einfuse.dsl.symbols import Symbol, TreeTracer, symbol
from einfuse.dsl.trace import defined, twice
from einfuse.dsl.trace import name as name_of
from einfuse.ir import Cascade, Span, SpecError


class _Tracer(TreeTracer):
    """All functions of one attention, whose keyword-only arguments are its inputs."""

    def __init__(self) -> None:
        self.captures = Captures()

    def call(self, fn: Callable[..., Any], first: tuple[Symbol, ...]) -> Symbol:
        place = defined(fn)
        parameters = inspect.signature(fn).parameters.values()
        keywords = {p.name: self.captures.argument(p, place) for p in parameters if p.kind is p.KEYWORD_ONLY}
        coordinates = [Symbol(ast.Name(c)) for c in self.coordinates]
        return Symbol(twice(fn, lambda: self.returned(fn, fn(*first, *coordinates, **keywords)).expr))


class ScoreMod:
    """A function of a score and its coordinates, to be traced."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.name = _name(fn)
        self.__doc__ = fn.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, for use inside another mod."""
        return self.fn(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _by_name(self) or (ScoreMod, (self.fn,))

    def trace(self, score: ast.Expr, tracer: _Tracer) -> ast.Expr:
        """The modified score."""
        return tracer.run(self.fn, Symbol(score)).expr


class MaskMod:
    """A predicate over coordinates, to be traced; ``a & b``, ``a | b`` and ``~a`` are masks again."""

    def __init__(self, fn: Callable[..., Any] | None, op: Literal["and", "or", "not"] | None = None, *parts: MaskMod) -> None:
        self.fn, self.op, self.parts = fn, op, parts
        names = [_name(fn)] if fn is not None else [p.name for p in parts]
        self.name: str = "_".join(["not", *names] if op == "not" else names)
        self.__doc__ = fn.__doc__ if fn is not None else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The predicate itself, for use inside another mod."""
        if self.fn is not None:
            return self.fn(*args, **kwargs)
        values = [p(*args, **{k: v for k, v in kwargs.items() if k in _keywords(p)}) for p in self.parts]
        return ~values[0] if self.op == "not" else values[0] & values[1] if self.op == "and" else values[0] | values[1]

    def __and__(self, other: MaskMod | Callable[..., Any]) -> MaskMod:
        return MaskMod(None, "and", self, mask_mod(other))

    def __or__(self, other: MaskMod | Callable[..., Any]) -> MaskMod:
        return MaskMod(None, "or", self, mask_mod(other))

    def __rand__(self, other: Callable[..., Any]) -> MaskMod:
        return mask_mod(other) & self

    def __ror__(self, other: Callable[..., Any]) -> MaskMod:
        return mask_mod(other) | self

    def __invert__(self) -> MaskMod:
        return MaskMod(None, "not", self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _by_name(self) or (MaskMod, (self.fn, self.op, *self.parts))

    def trace(self, tracer: _Tracer) -> ast.Expr:
        """The predicate."""
        if self.fn is not None:
            return tracer.run(self.fn).expr
        parts = [p.trace(tracer) for p in self.parts]
        if self.op == "not":
            return ast.Unary("not", parts[0], parts[0].loc)
        assert self.op is not None, "a mask is a function or an operation on masks"
        return ast.Binary(self.op, parts[0], parts[1], parts[0].loc)


def _by_name(mod: ScoreMod | MaskMod) -> tuple[Callable[..., Any], tuple[str, str]] | None:
    """How to pickle a mod that has taken the place of its function in a module: as functions are pickled, by name. None for another."""
    module, name = getattr(mod.fn, "__module__", None), getattr(mod.fn, "__qualname__", None)
    try:
        held = module and name and _held(module, name)
    except (ImportError, AttributeError):
        return None  # a function in a function, or a lambda
    return (_held, (str(module), str(name))) if held is mod else None


def _held(module: str, name: str) -> Any:
    """What a module holds under a name such as ``Masks.window``."""
    return operator.attrgetter(name)(importlib.import_module(module))


def score_mod(fn: Callable[..., Any]) -> ScoreMod:
    """Marks ``fn(score, b, h, i, j, *, inputs...)`` as a score mod."""
    return fn if isinstance(fn, ScoreMod) else ScoreMod(fn)


def mask_mod(fn: Callable[..., Any]) -> MaskMod:
    """Marks ``fn(b, h, i, j, *, inputs...)`` as a mask mod: true where query i sees key j."""
    return fn if isinstance(fn, MaskMod) else MaskMod(fn)


def attention(
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    normalizer: str | None = "softmax",
    scale: float | None = None,
) -> Cascade:
    """The cascade of ``normalizer(score_mod(q k^T scale)) v`` where ``mask_mod`` holds; ``scale`` None is 1 / sqrt(D).

    ``normalizer`` names a definition ``[j](s)`` of the prelude, is the text of definitions whose last one is taken, or is None for
    the scores themselves. Raises SpecError where a function does what a symbol cannot.
    """
    score = None if score_mod is None else _score_mod(score_mod)
    mask = None if mask_mod is None else _mask_mod(mask_mod)
    try:
        return elaborate(_module(score, mask, normalizer, scale))
    except SpecError as error:
        file = error.loc.file if error.loc is not None else ""
        raise error.within("".join(linecache.getlines(file))) from None


_score_mod, _mask_mod = score_mod, mask_mod  # the arguments of `attention` hide them


@dataclass(slots=True)
class _Weights:
    """A normaliser: definitions it brings, and its use."""

    value: ast.Expr
    definitions: tuple[ast.Definition, ...] = ()
    uses: tuple[ast.Use, ...] = field(default=())


def _module(score: ScoreMod | None, mask: MaskMod | None, normalizer: str | None, scale: float | None) -> ast.Module:
    tracer = _Tracer()
    raw = _raw_score(scale)
    value = raw if score is None else score.trace(raw, tracer)
    where = None if mask is None else mask.trace(tracer)
    weights = _weights(normalizer)
    head: tuple[ast.Element, ...] = (
        ast.RankLine(_names("i"), ast.Name("query")),
        ast.RankLine(_names("j"), ast.Name("key")),
        ast.RankLine(_names("d", "e"), ast.Name("feature")),
        ast.Input(ast.Name("q"), _names("b", "h", "i", "d")),
        *(
            ast.Input(ast.Name(n), (ast.Name("b"), _shared_head(), ast.Name("j"), ast.Name(f)))
            for n, f in (("k", "d"), ("v", "e"))
        ),
    )
    weighted = ast.Binary("*", weights.value, ast.Name("v"))
    body: tuple[ast.Element, ...] = (
        *tracer.captures.inputs(value, where),
        ast.Statement(ast.Name("s", value.loc), _names("i", "j"), value, where, value.loc),
        ast.Statement(ast.Name("o"), _names("i", "e"), ast.Call(ast.Name("sum"), _names("j"), (weighted,))),
        ast.Output(_names("o")),
    )
    name = "_".join(m.name for m in (score, mask) if m is not None) or "dot_product"
    doc = "\n\n".join(inspect.cleandoc(m.__doc__) for m in (score, mask) if m is not None and m.__doc__)
    node = ast.Attention(ast.Name(name[:80]), tracer.captures.params(), _names("b", "h"), (*head, *body), doc)
    return ast.Module("", weights.uses, weights.definitions, (node,), "<traced>")


def _raw_score(scale: float | None) -> ast.Expr:
    product = ast.Binary("*", ast.Name("q"), ast.Name("k"))
    total = ast.Call(ast.Name("sum"), _names("d"), (product,))
    if scale is None:
        return ast.Binary("/", total, ast.Call(ast.Name("sqrt"), None, _names("D")))
    return ast.Binary("*", total, symbol(scale).expr)


def _shared_head() -> ast.Expr:
    return ast.Binary("//", ast.Name("h"), ast.Name("group"))


def _weights(normalizer: str | None) -> _Weights:
    if normalizer is None:
        return _Weights(ast.Name("s"))
    if "def " in normalizer:
        module = parse(normalizer, "<normalizer>")
        if not module.definitions:
            raise SpecError(
                "the text of a normaliser defines nothing", Span("<normalizer>", 1, 1), "write def name[j](s) { ... }"
            )
        return _Weights(_normalised(module.definitions[-1]), module.definitions, module.uses)
    found = prelude().find(normalizer)
    known = [n for n, d in prelude().own.items() if len(d.node.ranks) == 1 and len(d.node.params) == 1]
    if found is None or normalizer not in known:
        hint = nearest(normalizer, known) or f"normalisers: {', '.join(known)}"
        raise SpecError(f"there is no normaliser `{normalizer}`", hint=hint)
    return _Weights(_normalised(found.node))


def _normalised(d: ast.Definition) -> ast.Expr:
    return ast.Call(ast.Name(d.name.text), _names("j"), (ast.Name("s"),))


def _keywords(mask: MaskMod) -> set[str]:
    if mask.fn is None:
        return set().union(*map(_keywords, mask.parts))
    return {p.name for p in inspect.signature(mask.fn).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _name(fn: Callable[..., Any]) -> str:
    name = name_of(fn)
    return name if name.isidentifier() else "mod"


def _names(*names: str) -> tuple[ast.Name, ...]:
    return tuple(map(ast.Name, names))
