"""The scalar functions of the IR as text of jax.numpy."""

from __future__ import annotations

from collections.abc import Sequence

from einfuse.codegen.plan import FUNCTIONS
from einfuse.codegen.torch import functions as torch
from einfuse.ir import DType

FORMS: dict[str, str] = {
    "+": "{} + {}",
    "-": "{} - {}",
    "*": "{} * {}",
    "/": "{} / {}",
    "//": "jnp.floor_divide({}, {})",
    "%": "jnp.remainder({}, {})",
    "hash": "hashed({}, {})",
    "^": "jnp.power({}, {})",
    "neg": "-{}",
    "abs": "jnp.abs({})",
    "max": "jnp.maximum({}, {})",
    "min": "jnp.minimum({}, {})",
    "sign": "jnp.sign({})",
    "stop": "{}",
    "exp": "jnp.exp({})",
    "exp2": "jnp.exp2({})",
    "log": "jnp.log({})",
    "log2": "jnp.log2({})",
    "log1p": "jnp.log1p({})",
    "sqrt": "jnp.sqrt({})",
    "rsqrt": "jax.lax.rsqrt({})",
    "tanh": "jnp.tanh({})",
    "sigmoid": "jax.nn.sigmoid({})",
    "softplus": "jax.nn.softplus({})",
    "erf": "jax.lax.erf({})",
    "sin": "jnp.sin({})",
    "cos": "jnp.cos({})",
    "floor": "jnp.floor({})",
    "float": "{}",
    "int": "{}",
    "<": "{} < {}",
    "<=": "{} <= {}",
    ">": "{} > {}",
    ">=": "{} >= {}",
    "==": "{} == {}",
    "!=": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "not": "~{}",
    "select": "jnp.where({}, {}, {})",
    "copy": "{}",
}
REDUCTIONS = {"+": "sum", "*": "prod", "max": "max", "min": "min"}
"""The function of jax.numpy that reduces an array by a function."""
assert FORMS.keys() == FUNCTIONS.keys(), "every function of plans has a form in JAX"
KINDS: dict[DType, str] = {"float": "real", "int": "jnp.int64", "bool": "jnp.bool_"}


def form(fn: str, args: Sequence[tuple[str, DType]], out: DType) -> str:
    """``fn(*args)`` as an array of type ``out``."""
    return torch.form(fn, args, out, FORMS, KINDS, "astype")
