"""A block that replaces torch's attention: who is in it and who is not, whatever threads, tasks, generators and compilers do."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

from einfuse import EinfuseError
from einfuse.integrations import replace_sdpa

STOCK = functional.scaled_dot_product_attention
MULTI_HEAD = functional.multi_head_attention_forward
Q = torch.randn(1, 2, 5, 8)


def inside() -> bool:
    """Is this code in a block? All that a block replaces says the same."""
    signs = {
        functional.scaled_dot_product_attention is not STOCK,
        functional.multi_head_attention_forward is not MULTI_HEAD,
        not torch.backends.mha.get_fastpath_enabled(),
        _refuses_dropout(),
    }
    assert len(signs) == 1
    return signs.pop()


def _refuses_dropout() -> bool:
    try:
        functional.scaled_dot_product_attention(Q, Q, Q, dropout_p=0.1)
    except ValueError:
        return True
    return False


def test_the_block_replaces_and_ends() -> None:
    assert not inside()
    with replace_sdpa("torch"):
        assert inside()
    assert not inside()
    with contextlib.suppress(KeyError), replace_sdpa("torch"):
        raise KeyError
    assert not inside()
    with pytest.raises(EinfuseError, match="there is no back end 'cuda'; choose from cpu"), replace_sdpa("cuda"):  # type: ignore[arg-type]
        pass
    assert not inside()


def test_the_innermost_of_several_blocks_counts(backends: list[object]) -> None:
    def call() -> object:
        functional.scaled_dot_product_attention(Q, Q, Q)
        return backends[-1]

    with replace_sdpa("torch"):
        assert call() == "torch"
        with replace_sdpa("cpu"):
            assert call() == "cpu"
        assert call() == "torch"


def test_a_function_may_be_a_block_and_call_itself() -> None:
    @replace_sdpa("torch")
    def depth(n: int) -> int:
        assert inside()
        return n if n == 3 else depth(n + 1)

    assert depth(0) == 3
    assert not inside()


def test_threads_that_enter_and_leave_in_any_order_see_their_own_blocks() -> None:
    turn = threading.Barrier(2, timeout=60)
    seen: dict[str, list[bool]] = {"first": [], "second": []}

    def first() -> None:
        with replace_sdpa("torch"):
            turn.wait()  # the second one is outside
            turn.wait()
            seen["first"].append(inside())  # the second one is inside as well
            turn.wait()
        seen["first"].append(inside())  # the second one still is
        turn.wait()

    def second() -> None:
        turn.wait()
        seen["second"].append(inside())
        with replace_sdpa("torch"):
            turn.wait()
            turn.wait()
            turn.wait()
            seen["second"].append(inside())
        seen["second"].append(inside())

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    assert seen == {"first": [True, False], "second": [False, True, False]}
    assert not inside()


def test_many_threads_at_once() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 16)

    def serve(n: int) -> bool:
        with replace_sdpa("torch") if n % 2 else contextlib.nullcontext(), torch.no_grad():
            layer(x)
            return inside() == bool(n % 2)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(serve, range(40)))
    assert not inside()


def test_a_thread_that_starts_inside_is_outside() -> None:
    with replace_sdpa("torch"), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(inside).result()


def test_tasks_that_take_turns_see_their_own_blocks() -> None:
    async def member(entered: asyncio.Event, other: asyncio.Event) -> tuple[bool, bool]:
        with replace_sdpa("torch"):
            entered.set()
            await other.wait()
            first = inside()
        return first, inside()

    async def bystander(entered: asyncio.Event) -> bool:
        await entered.wait()
        return inside()

    async def late() -> bool:
        await asyncio.sleep(0.01)
        return inside()

    async def run() -> tuple[object, ...]:
        a, b = asyncio.Event(), asyncio.Event()
        before = asyncio.create_task(bystander(a))
        both = asyncio.create_task(member(a, b)), asyncio.create_task(member(b, a))
        with replace_sdpa("torch"):
            outlives = asyncio.create_task(late())
        return await before, *await asyncio.gather(*both), await outlives

    assert asyncio.run(run()) == (False, (True, False), (True, False), False)


def test_generators_may_end_in_any_order_and_anywhere() -> None:
    def block() -> Generator[bool, None, None]:
        with replace_sdpa("torch"):
            yield inside()
            yield inside()

    first, second = block(), block()
    assert next(first)
    assert next(second)
    first.close()
    assert next(second)  # the other one's end is not its own
    second.close()
    assert not inside()
    third = block()
    assert next(third)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(third.close).result()
    assert not inside()


def test_a_function_kept_from_a_block_is_torch_s_after_it(backends: list[object]) -> None:
    with replace_sdpa("torch"):
        from torch.nn.functional import scaled_dot_product_attention as kept
    torch.testing.assert_close(kept(Q, Q, Q, is_causal=True), STOCK(Q, Q, Q, is_causal=True))
    assert backends == []
    with replace_sdpa("torch"):
        kept(Q, Q, Q)
    assert backends == ["torch"]


def test_what_others_put_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return v

    with replace_sdpa("torch"):
        pass
    monkeypatch.setattr(functional, "scaled_dot_product_attention", other)
    with replace_sdpa("torch"):
        assert functional.scaled_dot_product_attention is not other
    assert functional.scaled_dot_product_attention is other
    monkeypatch.undo()
    assert not inside()


def test_a_tracer_keeps_the_call() -> None:
    class Causal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    with replace_sdpa("torch"):
        traced = torch.fx.symbolic_trace(Causal())
    assert "einfuse" in str([n.target.__module__ for n in traced.graph.nodes if n.op == "call_function"])
    torch.testing.assert_close(traced(Q), Causal()(Q))


# -- torch.compile -------------------------------------------------------------------------------------------------------------------

MULTIHEAD = nn.MultiheadAttention(16, 4, batch_first=True).eval()
LAYER = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval()
COMPILED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "function": lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
    "multi-head": lambda x: MULTIHEAD(x, x, x, need_weights=False)[0],
    "layer": lambda x: LAYER(x),
}


@pytest.fixture
def graphs() -> Iterator[list[int]]:
    """How many calls of einfuse are in each graph that `counting` was given."""
    torch._dynamo.reset()
    _COUNTED.clear()
    yield _COUNTED
    torch._dynamo.reset()


_COUNTED: list[int] = []


def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
    """A compiler that runs the graph as it is."""
    _COUNTED.append(sum("einfuse" in str(n.target) for n in graph.graph.nodes))
    return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_compiled_code_asks_whether_it_is_inside(name: str, graphs: list[int]) -> None:
    x, function = torch.randn(2, 5, 16), COMPILED[name]
    compiled = torch.compile(function, backend=counting, fullgraph=True)

    def run() -> torch.Tensor:
        return compiled(x)

    with torch.no_grad():  # where torch would take its fast path
        expected = function(x)
        for _ in range(2):
            found = [run()]
            with replace_sdpa("torch"):
                found.append(run())
                with ThreadPoolExecutor(1) as pool:
                    found.append(pool.submit(torch.no_grad()(run)).result())
            with replace_sdpa("triton" if name == "function" else "torch"):
                found.append(run())
            for f in found:
                torch.testing.assert_close(f, expected, rtol=1e-5, atol=1e-5)
    assert graphs == ([0, 1, 1] if name == "function" else [0, 1])  # in the second round nothing is compiled again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_a_block_entered_in_compiled_code_breaks_the_graph(graphs: list[int]) -> None:
    x = torch.randn(2, 5, 16)

    def function(x: torch.Tensor) -> torch.Tensor:
        with replace_sdpa("torch"):
            out: torch.Tensor = LAYER(x)
            return out

    with torch.no_grad():
        with pytest.raises(torch._dynamo.exc.Unsupported, match="enter it around the call of the compiled function"):
            torch.compile(function, backend=counting, fullgraph=True)(x)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(function, backend=counting)(x), LAYER(x), rtol=1e-5, atol=1e-5)
        assert sum(graphs) == 1


@pytest.mark.slow
def test_what_torch_looks_up_once_it_may_look_up_inside() -> None:
    """Tables of torch that are made at their first use, here inside of a block, know its own functions."""
    program = """
import torch
from torch.nn import functional
from einfuse.integrations import replace_sdpa
from einfuse.integrations.replacement import InsideCompiled
seen = []
def compiler(graph, _):
    seen.append(sum("einfuse" in str(n.target) for n in graph.graph.nodes))
    return graph.forward
def plain(x):
    return functional.scaled_dot_product_attention(x, x, x)
def entering(x):
    with InsideCompiled("torch"):
        return plain(x)
x = torch.randn(1, 2, 5, 8)
with replace_sdpa("torch"):
    torch.compile(plain, backend=compiler, fullgraph=True)(x)
torch.compile(plain, backend=compiler, fullgraph=True)(x)
torch.compile(entering, backend=compiler, fullgraph=True)(x)
assert functional.scaled_dot_product_attention in torch.overrides.get_testing_overrides()
print(seen)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[1, 0, 1]\n"


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The back end of each call that einfuse got. It computes nothing."""
    calls: list[object] = []

    def counted(q: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(kwargs["backend"])
        return q

    monkeypatch.setattr("einfuse.integrations.sdpa.general", counted)
    return calls
