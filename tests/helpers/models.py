"""Models of other people over devices: what processes are asked to do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from narrowed import three
from processes import rows_of
from torch.nn import functional

import einfuse.distributed
from einfuse.integrations import replace_sdpa

TOKENS = 23


def llama(kind: str) -> torch.nn.Module:
    """A small random model of two layers: rotary positions, grouped heads; with windows or sinks where its kind has them."""
    import transformers
    from transformers import AutoModelForCausalLM

    import einfuse.integrations.transformers as ours

    ours.register("einfuse", backend="torch")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    more: dict[str, dict[str, Any]] = {
        "Llama": {},
        "Mistral": {"sliding_window": 7},
        "GptOss": {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes | more[kind])
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM
    found = model.from_config(config, attn_implementation="einfuse").float()
    assert isinstance(found, torch.nn.Module)
    return found


def step(
    model: torch.nn.Module, tokens: torch.Tensor, real: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits, and the gradients of every parameter by a loss that is a sum over tokens."""
    logits = model(input_ids=tokens, attention_mask=real, position_ids=at[None].expand(len(tokens), -1), use_cache=False).logits
    weights = torch.sin(torch.arange(logits.shape[-1]) + at[:, None].float())
    (logits * weights * real[..., None]).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and which are real: one row is padded on the right, within the part of the last device."""
    tokens = torch.randint(50, (2, TOKENS), generator=torch.Generator().manual_seed(3))
    real = torch.ones(2, TOKENS, dtype=torch.long)
    real[1, -2:] = 0
    return tokens, real


def over(rank: int, size: int, given: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """What this device makes of its tokens, which it holds by counts or by a layout; gradients are summed over the devices."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    from einfuse.distributed.style import AlongSequence

    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("seq",))
    plan = None
    if given["layout"]:
        causal = einfuse.distributed.shard(einfuse.compile("causal", backend="torch"), mesh, i="seq", j="seq")
        plan = causal.layout(TOKENS, given["layout"])
    tokens, real = batch()
    at = torch.arange(TOKENS)
    if plan is None:
        rows = rows_of(TOKENS, given["counts"])[rank]
        mine = tokens[:, rows], real[:, rows], at[rows]
    else:
        mine = three(plan.scatter(tokens, real, at))
        rows = mine[2]
    model = llama(given["kind"])
    if given.get("styled"):
        parallelize_module(model, mesh, {"model.layers.*.self_attn": AlongSequence(layout=plan)})
        logits, gradients = step(model, *mine)
    else:
        with einfuse.distributed.use(mesh, sequence="seq", layout=plan):
            logits, gradients = step(model, *mine)
    for g in gradients.values():
        dist.all_reduce(g)
    return rows, {"logits": logits, **gradients}


def layered(rank: int, size: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """torch's own function inside of both blocks, and what is refused there; nothing is left of the block after it."""
    from torch.distributed.device_mesh import init_device_mesh

    from einfuse.flex import flex_attention
    from einfuse.integrations import flash_attn

    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("seq",))
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()
    rows = rows_of(9, (4, 1, 4))[rank]
    mine = three(x[:, :, rows].clone().requires_grad_() for x in (q, k, v))
    found: dict[str, Any] = {"rows": rows}
    with replace_sdpa("torch"), einfuse.distributed.use(mesh, sequence="seq"):
        out = functional.scaled_dot_product_attention(*mine, is_causal=True)
        found["compiled"] = torch.compile(functional.scaled_dot_product_attention, backend="eager")(
            *mine, is_causal=True
        ).detach()
        found["d"] = torch.autograd.grad((out * torch.cos(rows)[:, None]).sum(), mine)
        refused: dict[str, Callable[[], torch.Tensor]] = {
            "mask": lambda: functional.scaled_dot_product_attention(*mine, attn_mask=torch.ones(len(rows), len(rows)).bool()),
            "cache": lambda: functional.scaled_dot_product_attention(mine[0], q, v),
            "flex": lambda: flex_attention(*mine),
            "flash": lambda: flash_attn.flash_attn_func(*three(x.transpose(1, 2) for x in mine)),
        }
        for name, call in refused.items():
            try:
                call()
            except ValueError as error:
                found[name] = str(error)
    found["out"] = out.detach()
    with replace_sdpa("torch"):
        found["after"] = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return found


def encoder() -> torch.nn.Module:
    """Two layers of torch's own, the same in every process."""
    torch.manual_seed(2)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def beside_fsdp(rank: int, size: int, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Outputs of this process and whole gradients: parameters lie along ``dp``, which has a sequence each, and sequences along ``seq``."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import parallelize_module

    from einfuse.distributed.style import AlongSequence

    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "seq"))
    model: Any = encoder()
    parallelize_module(model, mesh["seq"], {"layers.*.self_attn": AlongSequence()})
    for layer in model.layers:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    one, rows = rank // (size // 2), rows_of(given["tokens"].shape[1], given["counts"])[rank % (size // 2)]
    with replace_sdpa("torch"):
        out = model(given["tokens"][one : one + 1, rows])
        (out * given["weight"][one : one + 1, rows]).sum().backward()
    gradients = {n: 2 * p.grad.full_tensor() for n, p in model.named_parameters()}  # FSDP takes the mean
    for g in gradients.values():
        dist.all_reduce(g, group=mesh.get_group("seq"))
    return {"rows": rows, "out": out.detach(), **gradients}
