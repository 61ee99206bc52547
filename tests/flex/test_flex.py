"""`einfuse.flex.flex_attention`: what it computes, and where FlexAttention's users are silently let down."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from einfuse.flex import AuxRequest, BlockMask, and_masks, create_block_mask, flex_attention, noop_mask, or_masks
from einfuse.flex.assemble import _COMPILED

OPTIONS = {"backend": "torch"}  # most tests are about the trace, whatever runs it
close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(width: int) -> Callable[..., Any]:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx - kv_idx).abs() <= width

    return mask


def mask_of(mask_mod: Callable[..., Any], rows: int, columns: int | None = None) -> BlockMask:
    made: BlockMask = create_block_mask(mask_mod, None, None, rows, rows if columns is None else columns, device="cpu")
    return made


def check(
    qkv: tuple[Tensor, ...],
    dense: Any,
    score_mod: Any = None,
    mask_mod: Any = None,
    also: tuple[Tensor, ...] = (),
    **given: Any,
) -> Tensor:
    """Values and all gradients, of the log-sum-exp as well; gives back the output."""
    q, k, v = qkv
    mask = None if mask_mod is None else mask_of(mask_mod, q.shape[2], k.shape[2])
    options = given.pop("options", OPTIONS)
    out, aux = flex_attention(
        q, k, v, score_mod, mask, return_aux=AuxRequest(lse=True), kernel_options=options, enable_gqa=True, **given
    )
    wanted, lse = dense(q, k, v, score_mod, mask_mod, **given)
    close(out, wanted)
    close(aux.lse, lse)
    torch.manual_seed(0)
    left, right = torch.randn_like(out), torch.randn_like(lse)
    live = torch.isfinite(lse)
    inputs = [x for x in (*qkv, *also) if x.requires_grad]
    grads = [
        torch.autograd.grad((o * left).sum() + (z[live] * right[live]).sum(), inputs)
        for o, z in ((out, aux.lse), (wanted, lse))
    ]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert isinstance(out, Tensor)
    return out


# -- what it computes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_c_plus_plus_kernels(qkv: Any, dense: Any) -> None:
    """Odd lengths, grouped heads, captured slopes, minus infinity in the score, and a mask: forward and backward."""
    slopes = torch.rand(4).requires_grad_()

    def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return torch.where(q_idx >= kv_idx, score + slopes[h] * (kv_idx - q_idx), -float("inf"))

    check(qkv(2, 4, 77, 91, 8, 2), dense, alibi, window(20), (slopes,), options={})


def test_plain(qkv: Any, dense: Any) -> None:
    check(qkv(1, 2, 13, 29), dense, scale=0.4)


def test_one_batch_of_keys_serves_all(qkv: Any, dense: Any) -> None:
    q, _, _ = qkv(3, 2, 9)
    _, k, v = qkv(1, 2, 9)
    check((q, k, v), dense)


def test_the_row_maximum(qkv: Any) -> None:
    q, k, v = qkv(1, 2, 9)
    _, aux = flex_attention(q, k, v, None, mask_of(causal, 9), return_aux=AuxRequest(max_scores=True), kernel_options=OPTIONS)
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf)
    close(aux.max_scores, scores.amax(-1))
    close(*(torch.autograd.grad(m.sum(), (q, k)) for m in (aux.max_scores, scores.amax(-1))))
    assert aux.lse is None


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softcap": lambda s, b, h, i, j: 5 * torch.tanh(s / 5),
    "clamp": lambda s, b, h, i, j: s.clamp(-1, 1.5) + torch.clamp(i - j, max=3) * 0.1,
    "rounding": lambda s, b, h, i, j: (
        s + torch.round((i - j) * 0.5) - torch.floor(i / 3) + torch.ceil(j / 4) + torch.trunc((j - i) / 2)
    ),
    "division": lambda s, b, h, i, j: (
        s + (i - j) // 3 - (j - i) % 5 + torch.div(j - i, 4, rounding_mode="trunc") + (s * 2) % 1.5
    ),
    "powers": lambda s, b, h, i, j: s + 2.0 ** -(h + 1) * (i - j) ** 2 + (i + 1).float().log2().sqrt() - torch.rsqrt(1.0 + j),
    "logic": lambda s, b, h, i, j: s + (((i < j) ^ (i % 2 == 0)) & ~(j > 5)) * 1.5 + (i == j).to(s.dtype) - (h != b).int(),
    "activations": lambda s, b, h, i, j: (
        torch.nn.functional.gelu(s, approximate="tanh")
        + torch.nn.functional.silu(s)
        + torch.nn.functional.softplus(s)
        + torch.relu(s)
    ),
    "choices": lambda s, b, h, i, j: (
        torch.maximum(s, torch.minimum(s * 2, s.new_zeros(()))) + s.masked_fill(i == j, 0.25).abs()
    ),
    "trigonometry": lambda s, b, h, i, j: (
        s + torch.cos((i - j) * 0.3) - torch.sin(s) + torch.erf(s) + torch.sigmoid(-s) + torch.expm1(s / 9)
    ),
    "bits": lambda s, b, h, i, j: s + ((i >> 2) & 3) * 0.5 + (((i & 3) << 2) | (j & 3)) * 0.1,
    "detached": lambda s, b, h, i, j: s + s.detach() * 0.1,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_torch(name: str, qkv: Any, dense: Any) -> None:
    check(qkv(1, 2, 11, 12), dense, FUNCTIONS[name])


def test_captured_tensors_get_gradients_however_often_they_are_read(qkv: Any, dense: Any) -> None:
    """torch compiles one indexed read for each tensor that wants a gradient; a symmetric bias takes two."""
    bias, gate = torch.randn(12, 12).requires_grad_(), torch.randn(3, 2).requires_grad_()

    def symmetric(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score * torch.sigmoid(gate[q_idx % 3, h]) + bias[q_idx, kv_idx] + bias[kv_idx, q_idx] + bias[..., 0][kv_idx]

    check(qkv(2, 2, 12), dense, symmetric, None, (bias, gate))


def test_only_a_captured_tensor_wants_a_gradient(qkv: Any, dense: Any) -> None:
    q, k, v = (x.detach() for x in qkv(1, 2, 12))
    table = torch.randn(23).requires_grad_()
    check((q, k, v), dense, lambda s, b, h, i, j: s + table[i - j + 11], None, (table,))


@pytest.mark.slow
def test_distances_of_captured_vectors(qkv: Any, dense: Any) -> None:
    """Short ones are written out, longer ones are a sum of their own, also beside scores of another dtype."""
    places = torch.randn(12, 3)
    check(qkv(1, 2, 12), dense, lambda s, b, h, i, j: s - (places[i] - places[j]).square().sum(-1).sqrt())
    check(qkv(1, 2, 12), dense, None, lambda b, h, i, j: ((places[i] > 0) == (places[j] > 0)).any(-1))
    q, k, v = (x.detach().bfloat16() for x in qkv(1, 2, 12))
    near = lambda s, b, h, i, j: s - (places[i] - places[j]).abs().amax()  # noqa: E731
    wanted = dense(q.float(), k.float(), v.float(), near)[0]
    torch.testing.assert_close(flex_attention(q, k, v, near, kernel_options=OPTIONS).float(), wanted, rtol=0.02, atol=0.02)
    long = torch.randn(12, 30).requires_grad_()
    q, k, v = qkv(1, 2, 12)
    out = flex_attention(q, k, v, lambda s, b, h, i, j: s + torch.dot(long[i], long[j]), kernel_options=OPTIONS)
    formula = torch.softmax(q @ k.mT / 8**0.5 + long @ long.mT, -1) @ v
    close(out, formula)
    grads = [torch.autograd.grad(o.square().sum(), (q, long)) for o in (out, formula)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    far = long.detach()
    check(qkv(1, 2, 12), dense, None, lambda b, h, i, j: (far[i] - far[j]).abs().sum() < 33)


def test_partials_methods_and_defaults(qkv: Any, dense: Any) -> None:
    class Model:
        slope = torch.tensor([0.5, 0.1])

        def bias(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any, power: int = 2) -> Any:
            return score - self.slope[h] * (q_idx - kv_idx) ** power

    check(qkv(1, 2, 12), dense, Model().bias)
    check(qkv(1, 2, 12), dense, None, functools.partial(lambda width, b, h, i, j: i - j < width, 5))


def test_masks_compose(qkv: Any, dense: Any) -> None:
    documents = torch.tensor([0] * 5 + [1] * 9 + [2] * 4)
    same = lambda b, h, i, j: documents[i] == documents[j]  # noqa: E731
    check(qkv(1, 2, 18), dense, None, and_masks(causal, or_masks(window(2), same)))
    check(qkv(1, 2, 18), dense, None, noop_mask)
    with pytest.raises(TypeError, match="found int 3"):
        and_masks(causal, 3)  # type: ignore[arg-type]


# -- the traps -----------------------------------------------------------------------------------------------------------------


def test_a_mask_that_depends_on_the_batch_made_without_one(qkv: Any, dense: Any) -> None:
    lengths = torch.tensor([5, 11, 2])
    check(qkv(3, 2, 12), dense, None, lambda b, h, i, j: j < lengths[b])


def test_a_captured_length_that_changes_after_the_mask_was_made(qkv: Any, dense: Any) -> None:
    q, k, v = qkv(1, 2, 140)
    length = torch.tensor([30])
    mask_mod = lambda b, h, i, j: j < length[0]  # noqa: E731
    mask = mask_of(mask_mod, 140)
    close(flex_attention(q, k, v, None, mask, kernel_options=OPTIONS), dense(q, k, v, None, mask_mod)[0])
    length[0] = 135
    close(flex_attention(q, k, v, None, mask, kernel_options=OPTIONS), dense(q, k, v, None, mask_mod)[0])
    assert mask.to_dense().sum() == 4


def test_blocks_without_a_function_are_not_full_attention(qkv: Any) -> None:
    """torch's eager call ignores the lists of blocks; they hold here."""
    q, k, v = qkv(1, 2, 64)
    eye = torch.arange(4).int().reshape(1, 1, 4, 1).expand(1, 1, 4, 4).contiguous()
    mask = BlockMask.from_kv_blocks(torch.ones(1, 1, 4, dtype=torch.int32), eye, BLOCK_SIZE=16)
    near = torch.arange(64) // 16
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, near[:, None] == near)
    close(flex_attention(q, k, v, None, mask, kernel_options=OPTIONS), wanted)


def test_there_is_no_limit_of_recompilations(qkv: Any, dense: Any) -> None:
    """Twelve windows, slopes and lengths: one kernel, and the right one each time."""
    before = len(_COMPILED)
    for n in range(12):
        q, k, v = (x.detach() for x in qkv(1, 1, 10 + n))
        score_mod = lambda s, b, h, i, j, slope=0.1 * n: s - slope * (i - j)  # noqa: E731
        out = flex_attention(q, k, v, score_mod, mask_of(window(n), 10 + n), kernel_options=OPTIONS)
        close(out, dense(q, k, v, score_mod, window(n))[0])
    assert len(_COMPILED) == before + 1


def test_every_row_masked(qkv: Any, dense: Any) -> None:
    check(qkv(1, 2, 9), dense, None, lambda b, h, i, j: (i > 3) & (j < i - 3))
    check(qkv(1, 2, 9), dense, lambda s, b, h, i, j: s.masked_fill(i > 3, -float("inf")))


def test_minus_infinity_in_a_captured_bias(qkv: Any, dense: Any) -> None:
    bias = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu().bool(), -torch.inf).requires_grad_()
    q, k, v = qkv(1, 2, 9)
    out = check((q, k, v), dense, lambda s, b, h, i, j: s + bias[i, j])
    assert (out[:, :, 0] == 0).all()


@pytest.mark.parametrize("options", [OPTIONS, pytest.param({}, marks=pytest.mark.slow)], ids=["torch", "c++"])
def test_minus_infinity_that_is_computed(options: Any, qkv: Any) -> None:
    """The logarithm of a weight of 0, over whole tiles and whole rows."""
    q, k, v = qkv(1, 2, 9, 200)
    keep = (torch.arange(200) > 120).float().repeat(9, 1)
    keep[4], keep[5, 130] = 0, 0.5
    wanted = torch.softmax((q @ k.mT / 8**0.5)[:, :, keep.any(-1)] + keep[keep.any(-1)].log(), -1) @ v
    out = flex_attention(q, k, v, lambda s, b, h, i, j: s + torch.log(keep[i, j]), kernel_options=options)
    close(out[:, :, keep.any(-1)], wanted)
    assert (out[:, :, 4] == 0).all()
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_logarithms_of_what_is_positive_need_no_look_at_the_scores(qkv: Any) -> None:
    q, k, v = (x.detach() for x in qkv(1, 2, 9))
    table = torch.rand(9) + 0.1
    flex_attention(q, k, v, lambda s, b, h, i, j: s + torch.log(table[j] + 0.5) + torch.log1p(i * 0.1), kernel_options=OPTIONS)
    body = list(_COMPILED.values())[-1].cascade.body
    assert "modified" not in [getattr(x, "target", "") for x in body]


def test_nan_behind_a_mask_does_not_leak(qkv: Any) -> None:
    q, k, v = qkv(1, 2, 9)
    upper = torch.ones(9, 9).triu(1).bool()
    bias = torch.zeros(9, 9).masked_fill(upper, torch.nan).requires_grad_()
    out = flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[i, j], mask_of(causal, 9), kernel_options=OPTIONS)
    close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    grads = torch.autograd.grad(out.sum(), (q, k, v, bias))
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0)])
def test_nothing_to_attend_with_or_to(rows: int, columns: int, qkv: Any) -> None:
    q, k, v = qkv(1, 2, rows, columns)
    out = flex_attention(q, k, v, kernel_options=OPTIONS)
    assert out.shape == (1, 2, rows, 8)
    assert (out == 0).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, of the graph after ours
def test_inside_a_compiled_function(qkv: Any, dense: Any) -> None:
    q, k, v = qkv(1, 2, 12)

    @torch.compile(backend="eager")
    def model(q: Tensor) -> Any:
        return flex_attention(q * 2, k, v, None, mask_of(causal, 12), kernel_options=OPTIONS) + 1

    close(model(q), dense(q * 2, k, v, None, causal)[0] + 1)


def test_one_graph_is_refused_with_what_to_do_instead(qkv: Any) -> None:
    def model(q: Tensor) -> Any:
        return flex_attention(q, q, q, None, mask_of(causal, 12), kernel_options=OPTIONS)

    with pytest.raises(RuntimeError, match=r"call an attention made outside of the graph: einfuse\.compile"):
        torch.compile(model, backend="eager", fullgraph=True)(qkv(1, 2, 12)[0])


def test_a_captured_mask_read_at_a_constant(qkv: Any, dense: Any) -> None:
    """A trap of torch's (#154197): the index of the head is a number, not the coordinate."""
    live = torch.rand(2, 3, 12, 12) < 0.6
    live[:, 0].diagonal(dim1=-2, dim2=-1).fill_(True)

    def first_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return live[b, 0, q_idx, kv_idx]

    check(qkv(2, 3, 12), dense, None, first_head)


def test_without_a_mask_and_with_one_that_masks_nothing(qkv: Any) -> None:
    """The same kernel: torch's is slower without a mask than with an empty one."""
    q, k, v = qkv(1, 2, 40)
    with torch.no_grad():
        plain = flex_attention(q, k, v, kernel_options=OPTIONS)
        noop = flex_attention(
            q, k, v, None, create_block_mask(noop_mask, None, None, 40, 40, device="cpu"), kernel_options=OPTIONS
        )
    assert torch.equal(plain, noop)


# -- what is refused -----------------------------------------------------------------------------------------------------------


def test_masks_of_other_lengths_are_refused(qkv: Any) -> None:
    q, k, v = qkv(1, 2, 9)
    with pytest.raises(ValueError, match=r"made for 12 queries and 12 keys, found 9 and 9.*_adjust\(9, 9\)"):
        flex_attention(q, k, v, None, mask_of(causal, 12))
    with pytest.raises(TypeError, match=r"block_mask must be a BlockMask .*, found Tensor"):
        flex_attention(q, k, v, None, torch.ones(9, 9))


def test_shapes_are_refused(qkv: Any) -> None:
    q, k, v = qkv(2, 4, 9)
    with pytest.raises(ValueError, match="4 query heads and 2 key heads need enable_gqa=True"):
        flex_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ValueError, match="not a multiple of 3"):
        flex_attention(q, k[:, :3], v[:, :3], enable_gqa=True)
    with pytest.raises(ValueError, match=r"\[batch, heads, length, width\], found the shape \(4, 9, 8\)"):
        flex_attention(q[0], k, v)
    with pytest.raises(ValueError, match="one width, found 8 and 4"):
        flex_attention(q, k[..., :4], v)
    with pytest.raises(ValueError, match="one batch, heads and length"):
        flex_attention(q, k, v[:, :, :3])
    with pytest.raises(ValueError, match="give one of them"):
        flex_attention(q, k, v, return_lse=True, return_aux=AuxRequest(lse=True))


def test_reads_outside_of_a_captured_tensor_are_refused(qkv: Any) -> None:
    q, k, v = qkv(1, 2, 9)
    table = torch.zeros(16)
    with pytest.raises(
        ValueError, match=r"index 0 of \w+table is i - j \+ 8 = 16 at i = 8, j = 0, but the axis has 16 entries"
    ):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i - j + 8], kernel_options=OPTIONS)


def test_nested_tensors_are_refused_with_what_to_do_instead() -> None:
    """Torch's once attended across sequences (#177378)."""
    q = torch.nested.nested_tensor_from_jagged(torch.randn(5, 2, 4), torch.tensor([0, 2, 5])).transpose(1, 2)
    with pytest.raises(TypeError, match=r"query is a nested tensor; .* einfuse\.varlen"):
        flex_attention(q, q, q)
