"""What every Pallas module starts with, and what runs its kernel on tensors of torch."""

IMPORTS = """
import functools

import jax
import jax.numpy as jnp
import torch
from jax.experimental import pallas as pl
"""

HELPERS = '''

def take(ref, index, alive, clamp=()):
    """ref[index...] at the points that are alive, 0 at others, which are not read; the axes of `clamp` are read at their ends, too."""
    wild = range(len(index)) if alive is not True else clamp
    index = [jnp.clip(i, 0, ref.shape[n] - 1) if n in wild else i for n, i in enumerate(index)]
    found = ref[tuple(jnp.broadcast_arrays(*index))] if index else ref[...]
    return found if alive is True else jnp.where(alive, found, 0)


def put(ref, index, value, alive):
    """ref[index...] = value at the points that are alive; others go into the row behind the last, which the caller drops."""
    if not index:
        ref[...] = value.reshape(ref.shape).astype(ref.dtype)
        return
    if alive is not True:
        index = [jnp.where(alive, index[0], ref.shape[0] - 1), *(jnp.where(alive, i, 0) for i in index[1:])]
    *index, value = jnp.broadcast_arrays(*index, value)
    ref[tuple(index)] = value.astype(ref.dtype)


def product(a, b, x, y, rank, narrow, real):
    """The matrix product of a[x, rank] and b[y, rank], numbers of axes, of operands rounded to `narrow`, added up in `real`."""
    shape = [a.shape[x] if n == x else b.shape[y] if n == y else 1 for n in range(a.ndim)]
    sides = [v.reshape(v.shape[min(own, rank)], v.shape[max(own, rank)]).astype(narrow) for v, own in ((a, x), (b, y))]
    summed = [int(own < rank) for own in (x, y)]
    exact = jax.lax.Precision.HIGHEST
    found = jax.lax.dot_general(*sides, ((summed[:1], summed[1:]), ((), ())), precision=exact, preferred_element_type=real)
    return found.reshape(shape)


def blocks(lo, hi, step):
    """How many blocks a phase has."""
    return jnp.maximum(hi - lo + (step - 1), 0).reshape(()) // step


def given(tensor, written):
    """A tensor as an array: with a row to drop behind the last where it is written, and one point where it has none."""
    shape = [max(n, 1) for n in tensor.shape]
    if written and shape:
        shape[0] += 1
    if list(tensor.shape) != shape:
        room = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        room[tuple(slice(n) for n in tensor.shape)] = tensor
        tensor = room
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


@functools.lru_cache(maxsize=64)
def called(shapes, params, sizes):
    """The kernel as Pallas interprets it: an accelerator takes neither ints of 64 bits nor tensors that are read at computed places."""
    params, sizes = dict(params), dict(sizes)
    shapes = [jax.ShapeDtypeStruct(*s) for s in shapes]
    first = len(NAMES) - len(WRITTEN)
    return jax.jit(
        pl.pallas_call(
            functools.partial(program, params, sizes),
            grid=grid(sizes),
            out_shape=shapes[first:],
            input_output_aliases={first + n: n for n in range(len(WRITTEN))},
            interpret=True,
        )
    )


def kernel(tensors, params, sizes):
    if 0 in grid(sizes):
        return
    with jax.enable_x64(True):
        arrays = [given(tensors[name], name in WRITTEN) for name in NAMES]
        shapes = tuple((x.shape, x.dtype) for x in arrays)
        found = called(shapes, tuple(params.items()), tuple(sizes.items()))(*arrays)
        for name, array in zip(WRITTEN, jax.block_until_ready(found)):
            tensor = tensors[name]
            tensor.copy_(torch.from_dlpack(array)[tuple(slice(n) for n in tensor.shape)])
'''
