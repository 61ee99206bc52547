"""What a masked body leaves out where its mask is false, and that nothing that is needed is left out."""

from collections.abc import Callable

import pytest
import torch
from narrowed import only
from plans import Code

import einfuse
from einfuse.codegen import cpu
from einfuse.codegen.cpu.alive import everywhere, limited, mask, noted
from einfuse.codegen.cpu.schedule import Nest, Node, Product, arrange, settle
from einfuse.codegen.plan import Const, Dot, Op, Store, Value
from einfuse.ir import Scalar

ORDER = ("i", "j", "d", "e")


def body(other: float, read_elsewhere: bool = False) -> tuple[list[Op], tuple[Value, ...]]:
    """s = q k ; p = select(j <= i, exp(s), other) ; o += p v, and a second state that reads every s."""
    c = Code(ORDER)
    i, j, d, e = map(c.coordinate, ORDER)
    q, k, v = c.load("q", "q", i, d), c.load("k", "k", j, d), c.load("v", "v", j, e)
    live = c.map("live", "<=", j, i)
    s = c.dot("s", q, k, "d")
    p = c.map("p", "select", live, c.map("power", "exp", s), c.const("other", other))
    out = c.dot("o_new", p, v, "j", c._value("o", ("i", "e"), "float"))
    updates = (out, c.reduce("t_new", "sum", s, "j")) if read_elsewhere else (out,)
    return c.ops, updates


def constants(ops: list[Op]) -> Callable[[Value], Scalar | None]:
    known = {op.out.name: op.value for op in ops if isinstance(op, Const)}
    return lambda v: known.get(v.name)


def nodes_of(ops: list[Op], updates: tuple[Value, ...]) -> list[Node]:
    found = mask(ops, ("i", "j"), updates, constants(ops))
    assert found is not None
    settled, _ = settle(noted(arrange(ops, ORDER), found.live), {}, {u.name for u in updates})
    return limited(settled, found)


def limits(nodes: list[Node]) -> dict[str, str]:
    return {n.op.out.name: n.limit for n in nodes if isinstance(n, Product)}


def test_products_and_loops_of_a_masked_body() -> None:
    nodes = nodes_of(*body(0.0))
    assert limits(nodes) == {"s": "columns", "o_new": "terms"}
    assert [n.limited for n in nodes if isinstance(n, Nest) and any(v.name == "p" for v in n.kept)] == [True]
    assert [n.seen.name for n in nodes if isinstance(n, Nest) and n.seen] == ["live"]


def test_what_is_read_elsewhere_is_computed_everywhere() -> None:
    assert limits(nodes_of(*body(0.0, read_elsewhere=True))) == {"s": "", "o_new": "terms"}


def test_terms_that_are_not_zero_are_not_left_out() -> None:
    nodes = nodes_of(*body(1.0))
    assert limits(nodes) == {"s": "columns", "o_new": ""}
    assert not any(n.limited for n in nodes if isinstance(n, Nest))


def test_a_left_operand_that_lies_by_terms_is_cleared() -> None:
    ops, updates = body(0.0)
    p = next(op.out for op in ops if not isinstance(op, (Const, Store)) and op.out.name == "p")
    turned = Dot(Value("r_new", ("j", "e"), "float"), p, Value("w", ("i", "e"), "float"), "i")
    nodes = nodes_of([*ops, turned], (*updates, turned.out))
    assert limits(nodes) == {"s": "columns", "o_new": "terms", "r_new": "turned terms"}
    assert [v.name for n in nodes if isinstance(n, Nest) for v in n.cleared] == ["p"]


def test_a_mask_of_scores_limits_only_what_follows() -> None:
    c = Code(ORDER)
    i, j, d, e = map(c.coordinate, ORDER)
    s = c.dot("s", c.load("q", "q", i, d), c.load("k", "k", j, d), "d")
    zero = c.const("zero", 0.0)
    p = c.map("p", "select", c.map("live", ">", s, zero), c.map("power", "exp", s), zero)
    out = c.dot("o_new", p, c.load("v", "v", j, e), "j", c._value("o", ("i", "e"), "float"))
    assert limits(nodes_of(c.ops, (out,))) == {"s": "", "o_new": "terms"}


def test_kernels_of_causal_attention_say_so() -> None:
    text = cpu.emit(einfuse.compile("causal").plan("cpu"))
    full, masked = text.split("const auto full_j")[1].split("const auto masked_j")
    assert "matmul(" in full
    assert "matmul_" not in full
    assert "matmul_columns(" in masked
    assert "matmul_terms<1>(" in masked


HOLES = """
attention holes over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) where (i // 6 * 5 + j // 16) % 4 == 0 or (i == j and i % 3 == 0)
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "bound", "counts"),
    [pytest.param(torch.float32, 4e-6, (1, 2), marks=pytest.mark.optimised), (torch.bfloat16, 3e-2, (1,))],
)
def test_masks_with_holes(dtype: torch.dtype, bound: float, counts: tuple[int, ...]) -> None:
    """Strips that are dead, alive in the middle, or at both ends; rows without any key; backward by rows and by columns, and as one."""
    torch.manual_seed(0)
    attn, threads = einfuse.compile(HOLES), torch.get_num_threads()
    x = [torch.randn(1, 3, n, 40).to(dtype).requires_grad_() for n in (133, 150, 150)]
    upstream = torch.randn(1, 3, 133, 40).to(dtype)
    exact = [v.detach().double().requires_grad_() for v in x]
    o = only(attn.reference(*exact))
    truth = (o, *torch.autograd.grad(o, exact, upstream.double()))
    try:
        for n in counts:  # three heads fill one thread: one backward kernel; two threads take two
            torch.set_num_threads(n)
            o = only(attn(*x))
            for found, true in zip((o, *torch.autograd.grad(o, x, upstream)), truth, strict=True):
                torch.testing.assert_close(found.double(), true, rtol=0, atol=bound * max(1.0, true.abs().max().item()))
    finally:
        torch.set_num_threads(threads)


def test_a_body_where_its_mask_holds_has_no_selection() -> None:
    ops, updates = body(0.0)
    found = mask(ops, ("i", "j"), updates, constants(ops))
    assert found is not None
    whole, wanted = everywhere(tuple(ops), updates, found.live)
    assert wanted == updates
    made = {op.out.name: op for op in whole if not isinstance(op, Store)}
    assert made.keys() & {"live", "p", "other"} == set()
    assert isinstance(product := made["o_new"], Dot)
    assert product.a.name == "power"


FLOATS = """
attention floats over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in w[i, j]
  s = sum[d](q * k) where w[i, j] > 0
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 4e-6), (torch.bfloat16, 3e-2)])
def test_blocks_of_which_only_numbers_tell_that_all_is_alive(dtype: torch.dtype, bound: float) -> None:
    """Blocks that are alive, dead, or either in part, of tiles and steps that are whole or short; a row without any key."""
    torch.manual_seed(0)
    attn = einfuse.compile(FLOATS, backend="cpu")
    assert "return full_j(" in attn.candidates("cpu", dtype, False, {})[0].source
    x = [torch.randn(1, 2, n, 24).to(dtype).requires_grad_() for n in (133, 290, 290)]
    w = torch.ones(133, 290)
    w[:96, 128:256] = -1
    w[50:97, 3] = w[100:, 40:60] = w[70] = -1
    upstream = torch.randn(1, 2, 133, 24).to(dtype)
    exact = [v.detach().double().requires_grad_() for v in x]
    truth = only(attn.reference(*exact, w))
    found = only(attn(*x, w.to(dtype)))
    for got, want in zip(
        (found, *torch.autograd.grad(found, x, upstream)),
        (truth, *torch.autograd.grad(truth, exact, upstream.double())),
        strict=True,
    ):
        assert ((got.double() - want).abs().max() / want.abs().max()).item() < bound
