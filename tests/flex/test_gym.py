"""Every mask and score mod of the package attn-gym: values as torch's eager flex_attention, gradients as the whole matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import three
from torch import Tensor

from einfuse.flex import AuxRequest, create_block_mask, flex_attention

pytest.importorskip("attn_gym")
from attn_gym import masks, mods

N = 64
OPTIONS = {"backend": "torch"}  # no C++ to build for each of them; test_flex.py runs the same path in C++


def offsets(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def graph() -> Tensor:
    torch.manual_seed(3)
    edges = torch.rand(2, N, N) < 0.1
    return edges | edges.transpose(1, 2)


def tree() -> Tensor:
    made: Tensor = masks.build_tree_ancestor_matrix([-1, *(n // 2 for n in range(N - 1))], device="cpu")
    return made


def vsa() -> Callable[..., Any]:
    torch.manual_seed(5)
    chosen = torch.rand(2, 2, 4, 4).topk(2, -1).indices.int()
    made: Callable[..., Any] = masks.generate_vsa_mask_mod(chosen, 16, torch.tensor([16, 16, 9, 16]))
    return made


MASKS: dict[str, Callable[[], Callable[..., Any]]] = {
    "causal": lambda: masks.causal_mask,
    "batchify": lambda: masks.batchify_mask_mod(masks.causal_mask, 24),
    "block_diffusion": lambda: masks.generate_block_diffusion_mask(32, 8),
    "dilated": lambda: masks.generate_dilated_sliding_window(20, 4),
    "documents": lambda: masks.generate_doc_mask_mod(masks.causal_mask, offsets(20, 13, 31)),
    "packed_documents": lambda: masks.generate_packed_causal_doc_mask_mod(offsets(20, 13, 31)),
    "flamingo": lambda: masks.generate_vision_cross_attention_mask_mod(torch.tensor([[0, 20], [20, 40], [30, 64], [5, 9]]), 16),
    "global": lambda: masks.generate_global_sliding_window(7, torch.arange(N) % 13 == 0),
    "tree": lambda: masks.generate_jetspec_tree_causal_mask_mod(0, tree()),
    "training_tree": lambda: masks.generate_jetspec_training_mask_mod(0, 9),
    "natten": lambda: masks.generate_natten(8, 8, 3, 5),
    "tiled_natten": lambda: masks.generate_tiled_natten(8, 8, 3, 3, 4, 4),
    "morton_natten": lambda: masks.generate_morton_natten(8, 8, 3, 3),
    "prefix": lambda: masks.generate_prefix_lm_mask(11),
    "shared_prefix": lambda: masks.generate_shared_prefix_mask_mod(offsets(20, 13, 31), torch.tensor([0, 0, 2])),
    "window": lambda: masks.generate_sliding_window(9),
    "sta_2d": lambda: masks.generate_sta_mask_mod_2d((8, 6), (4, 2), (2, 2), 16),
    "sta_3d": lambda: masks.generate_sta_mask_mod_3d((2, 4, 6), (2, 4, 2), (1, 2, 2), 16),
    "spatial": lambda: masks.generate_spatial_head_mask_mod(8, 4, 14, 1, True, 8),
    "temporal": lambda: masks.generate_temporal_head_mask_mod(8, 4, 14, 1),
    "vsa": vsa,
}

DIFFERENTIATED = ("causal", "documents", "flamingo", "global", "natten", "vsa")
"""Masks whose gradients are compared as well: the derivation is the same for all, the tables and products differ."""
TABLES: dict[str, tuple[int, ...]] = {"spatial_bias": (2, 6), "edge_bias": (2, 3, 4)}


def spatial_bias(table: Tensor) -> Callable[..., Any]:
    made: Callable[..., Any] = mods.generate_graphormer_spatial_bias(table, mods.shortest_path_distances(graph(), 4))
    return made


def edge_bias(table: Tensor) -> Callable[..., Any]:
    edges = torch.randint(0, 4, (2, N, N), generator=torch.Generator().manual_seed(1))
    made: Callable[..., Any] = mods.generate_graphormer_edge_bias(table, *mods.shortest_path_edge_types(graph(), edges, 3))
    return made


MODS: dict[str, Callable[..., Callable[..., Any]]] = {
    "alibi": lambda: mods.generate_alibi_bias(2),
    "softcap": lambda: mods.generate_tanh_softcap(5),
    "sandwich": lambda: mods.generate_sandwich_bias(2, N),
    "gelu": lambda: mods.generate_activation_score_mod(),
    "sigmoid": lambda: mods.generate_activation_score_mod(torch.sigmoid, 0.5),
    "spatial_bias": spatial_bias,
    "edge_bias": edge_bias,
}


def test_the_list_is_complete() -> None:
    """Every function of the package that makes a mask or a score mod stands above (those of a block list: test_block_mask.py)."""
    made = {n for m in (masks, mods) for n in dir(m) if n.startswith("generate_") or n in ("causal_mask", "batchify_mask_mod")}
    assert len(made) == len(MASKS) + len(MODS)  # "gelu" and "sigmoid" are one of them, and MLA has a test of its own


def eager(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Any, mask_mod: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    from torch.nn.attention import flex_attention as torchs

    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    n = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask = None if mask_mod is None else torchs.create_block_mask(mask_mod, *n, device="cpu")
    with torch.no_grad():
        q, k, v = (x.detach() for x in (q, k, v))
        out, aux = torchs.flex_attention(q, k, v, score_mod, mask, return_aux=torchs.AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


def compare(
    qkv: tuple[Tensor, Tensor, Tensor],
    table: Tensor | None,
    score_mod: Any,
    mask_mod: Any,
    dense: Any,
    monkeypatch: pytest.MonkeyPatch,
    gradients: bool = True,
) -> None:
    """Values against torch's function, gradients (of the row statistic as well) against the whole matrix."""
    if not gradients:
        qkv = three(x.detach() for x in qkv)
    mask = None if mask_mod is None else create_block_mask(mask_mod, None, None, N, N, device="cpu")
    out, aux = flex_attention(*qkv, score_mod, mask, kernel_options=OPTIONS, return_aux=AuxRequest(lse=True))
    wanted = eager(*qkv, score_mod, mask_mod, monkeypatch)
    torch.testing.assert_close((out, aux.lse), wanted, rtol=1e-5, atol=1e-5)
    if not gradients:
        return
    reference = dense(*qkv, score_mod, mask_mod)
    inputs = [*qkv, *([] if table is None else [table])]
    torch.manual_seed(0)
    weight = [torch.randn_like(x) for x in wanted]
    live = torch.isfinite(reference[1])
    grads = []
    for o, z in ((out, aux.lse), reference):
        loss = (o * weight[0]).sum() + (z[live] * weight[1][live]).sum()
        grads.append(torch.autograd.grad(loss, inputs))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "morton_natten" else n for n in MASKS])
def test_masks(name: str, qkv: Any, dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(qkv(2, 2, N), None, None, MASKS[name](), dense, monkeypatch, name in DIFFERENTIATED)


@pytest.mark.parametrize("name", MODS)
def test_mods(name: str, qkv: Any, dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = None
    if name in TABLES:
        torch.manual_seed(2)
        table = torch.randn(TABLES[name]).requires_grad_()
    compare(qkv(2, 2, N), table, MODS[name](*([] if table is None else [table])), None, dense, monkeypatch)


def test_the_second_product_of_mla(qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch cannot differentiate the dot product of captured vectors: its gradients come from the formula."""
    q, k, v = qkv(2, 2, N)
    torch.manual_seed(2)
    table = torch.randn(2, 2, N, 8).requires_grad_()
    score_mod = mods.generate_mla_rope_score_mod(table, table.flip(2)[:, :1], 2, 0.3)
    out = flex_attention(q, k, v, score_mod, kernel_options=OPTIONS)
    torch.testing.assert_close(out, eager(q, k, v, score_mod, None, monkeypatch)[0], rtol=1e-5, atol=1e-5)
    second = table @ table.flip(2)[:, :1].transpose(-1, -2)
    wanted = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + 0.3 * second, -1) @ v
    weight = torch.randn(out.shape)
    grads = [torch.autograd.grad((o * weight).sum(), (q, k, v, table)) for o in (out, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
