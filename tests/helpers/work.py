"""What processes are asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from devices import oracle
from processes import rows_of

import einfuse
from einfuse.distributed.here import axes_of
from einfuse.distributed.sharded import SLOTS
from einfuse.distributed.transport import Group
from einfuse.ir import Cascade
from einfuse.ir.passes.shard import held
from einfuse.runtime.examples import Shape, example_inputs, example_sizes


def given_to(c: Cascade, shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    inputs = example_inputs(c, dtype, 0, shape)
    return {n: x.contiguous() if isinstance(x, torch.Tensor) else x for n, x in inputs.items()}


def weights_of(c: Cascade, shape: Shape) -> dict[str, torch.Tensor]:
    """What outputs are weighed by, so that each has a gradient of its own."""
    sizes, generator = example_sizes(c, shape), torch.Generator().manual_seed(1)
    extents = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in c.ranks}
    return {n: torch.randn([extents[r] for r in axes_of(c, n)], generator=generator) for n in c.outs}


def part(x: torch.Tensor, axis: int | None, rows: list[torch.Tensor], rank: int) -> torch.Tensor:
    return x if axis is None else x.index_select(axis, rows[rank])


def along(c: Cascade, ranks: tuple[str, ...], name: str) -> int | None:
    return next((n for n, r in enumerate(axes_of(c, name)) if r in ranks), None)


def on_device(rank: int, size: int, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Outputs and gradients of one device, of two calls that have to be the same bits. ``written``: of one, by the cascade as written."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    from einfuse.distributed import shard

    attention = einfuse.compile(given["name"], backend="torch")
    c, ranks, shape = attention.cascade, given["ranks"], given["shape"]
    mesh: DeviceMesh = init_device_mesh("cpu", (size,), mesh_dim_names=("seq",))
    along_it: dict[str, Any] = dict.fromkeys(ranks, "seq")
    sharded = shard(attention, mesh, exchange=given["exchange"], **along_it)
    if given.get("written"):
        sharded.evaluate = oracle
    place = held(c, ranks)
    found: dict[str, torch.Tensor] = {}
    for _ in range(1 if given.get("written") else 2):
        inputs = {}
        for n, x in given_to(c, shape, given["dtype"]).items():
            if isinstance(x, torch.Tensor):
                x = part(x, place.get(n), rows_of(x.shape[place.get(n, 0)], given["counts"]), rank).clone() if x.ndim else x
                x = x.requires_grad_(x.is_floating_point())
            inputs[n] = x
        transport = sharded.transports["seq"]
        assert isinstance(transport, Group)
        if not found:
            here, values = sharded.asked(c, (), inputs)
            count = sharded.bytes(c, here, values, 0, sharded.chosen(c, here, values)[0][1])
        before = transport.sent
        outs = sharded(**inputs)
        outs = outs if isinstance(outs, tuple) else (outs,)
        w = weights_of(c, shape)
        share = torch.zeros(())
        for n, o in zip(c.outs, outs, strict=True):
            a = along(c, ranks, n)
            share = share + (o * part(w[n], a, rows_of(w[n].shape[a or 0], given["counts"]), rank)).sum()
        share.backward()
        counted = sum(count.forward[rank]) + sum(count.backward[rank])
        assert transport.sent - before - SLOTS * 8 * (size - 1) == counted, "explain counts what is sent"
        grads = {f"d{n}": x.grad for n, x in inputs.items() if isinstance(x, torch.Tensor) and x.grad is not None}
        made = dict(zip(c.outs, (o.detach() for o in outs), strict=True)) | grads
        for n, x in found.items():
            assert torch.equal(made[n], x), f"{n} is not the same twice"
        found = made
    return found


def in_parts(rank: int, size: int, given: Mapping[str, Any]) -> bool:
    """Whether six parts are the same bits over all processes and in this one alone, in outputs and gradients."""
    from torch.distributed.device_mesh import init_device_mesh

    from einfuse.distributed import shard

    attention, whole = einfuse.compile(given["name"], backend="torch"), given["inputs"]
    found = []
    for shape in ((1, size), (size, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("other", "seq"))
        sharded = shard(attention, mesh, exchange=given["exchange"], parts=6, i="seq", j="seq")
        plan = sharded.layout(given["total"], "contiguous")
        own = {n: x if n == "slope" else plan.scatter(x)[0] for n, x in whole.items()}
        own = {n: x.clone().requires_grad_() for n, x in own.items()}
        (o,) = plan.gather(sharded.on(plan)(**own), dim=2)  # type: ignore[arg-type]  # one output
        torch.sin(o).sum().backward()
        grads = {n: x.grad if n == "slope" else plan.gather(x.grad, dim=2)[0] for n, x in own.items()}  # type: ignore[arg-type]
        found.append({"o": o.detach(), **grads})
    over, alone = found
    return all(torch.equal(x, alone[n]) for n, x in over.items())  # type: ignore[arg-type]


def called(rank: int, size: int, given: Mapping[str, Any]) -> str:
    """The message of a call in which one device, ``odd``, does something else: it is gone, it waits, or it has another spec."""
    import os
    import time

    from torch.distributed.device_mesh import init_device_mesh

    from einfuse.distributed import ExchangeError, shard

    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("seq",))
    odd = rank == given["odd"]
    attention = einfuse.compile("alibi" if odd and given["does"] == "other" else "causal", backend="torch")
    sharded = shard(attention, mesh, exchange="columns", timeout=given["timeout"], i="seq", j="seq")
    x = torch.zeros(1, 2, 3, 4)
    if odd and given["does"] == "die":
        os._exit(1)
    if odd and given["does"] == "hang":
        time.sleep(given["timeout"] * 4)
        return "late"
    short = odd and given["does"] == "short"
    began = time.monotonic()
    try:
        sharded(x, x[:, :, :2] if short else x, x, **({"slope": torch.zeros(2)} if "slope" in repr(attention) else {}))
    except (ExchangeError, ValueError) as error:
        assert time.monotonic() - began < given["timeout"] * 2 + 5, "it says so in time"
        return f"{type(error).__name__}: {error}"
    return "done"


def page(rank: int, size: int, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the blocks of a page make, on kernels that need no compiler."""
    import contextlib
    import io

    names: dict[str, Any] = {}
    text = given["text"].replace('compile("alibi")', 'compile("alibi", backend="torch")')
    text = text.replace("replace_sdpa()", 'replace_sdpa("torch")')
    with contextlib.redirect_stdout(io.StringIO()):
        exec(
            compile(text, "distributed.md", "exec"),
            names,
        )
    return {
        "o": names["o"].detach(),
        "slope": names["slope"].grad,
        "positions": names["positions"],
        "made": names["made"].detach(),
        "whole": torch.stack(names["whole"]),
    }


def trained(rank: int, size: int, given: Mapping[str, Any]) -> tuple[list[float], list[float], int, int]:
    """The losses of examples/long_context.py over all processes and of one alone, and what each kept, on kernels that need no compiler."""
    import functools
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("long_context", given["path"])
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    compiled = einfuse.compile
    einfuse.compile = functools.partial(compiled, backend="torch")
    try:
        over, alone = module.main(module.Settings(steps=2, batch=1, length=48, window=8, width=16, heads=2, layers=1))
    finally:
        einfuse.compile = compiled
    return over.losses, alone.losses, over.kept, alone.kept


def placed(rank: int, size: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The attention on DTensors: outputs, gradients, and the message for one that is placed otherwise."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    from einfuse.distributed import shard

    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("seq",))
    attn = shard(einfuse.compile("alibi", backend="torch"), mesh, i="seq", j="seq")
    inputs: dict[str, Any] = {}
    for n, x in given["inputs"].items():
        inputs[n] = distribute_tensor(x, mesh, [Replicate()] if n == "slope" else [Shard(2)]).requires_grad_()
    o = attn(**inputs)
    assert isinstance(o, DTensor)
    (o.full_tensor() * given["weight"]).sum().backward()
    try:
        attn(**{**inputs, "k": inputs["k"].redistribute(mesh, [Replicate()])})
        message = ""
    except ValueError as error:
        message = str(error)
    grads = {n: x.grad.full_tensor() for n, x in inputs.items()}
    return {"o": o.full_tensor().detach(), "grads": grads, "placements": str(o.placements), "message": message}
