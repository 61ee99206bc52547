"""The graph of a call: what nodes make is allocated before they run, freed after its last reader, and belongs to no earlier call."""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.cli import main
from einfuse.codegen.triton.build import TritonKernel
from einfuse.ir import DoesNotFitError
from einfuse.runtime.drawing import lines
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Host, Kernel, Node, Part, Tensors, tried
from einfuse.runtime.outputs import Output
from einfuse.runtime.verify import Shape, example_inputs

GIVEN = Given({"x": torch.arange(4.0)}, {}, {"N": 4})


def kernel(reads: str, makes: Mapping[str, Output], write: object, names: Mapping[str, str] | None = None) -> Kernel:
    return Kernel("k", tuple(reads.split()), makes, GIVEN, lambda: None, lambda: write, names=names or {})  # type: ignore[arg-type,return-value]


def run(*nodes: Node, outs: tuple[str, ...]) -> list[torch.Tensor]:
    return Graph(lambda given: nodes, GIVEN, outs).run(dict(GIVEN.tensors))


def test_a_kernel_makes_whole_numbers_that_a_later_one_reads() -> None:
    """As a choice of coordinates is made: its shape follows from sizes, its values from tensors."""

    def choose(tensors: Mapping[str, torch.Tensor], *call: object) -> bool:
        tensors["chosen"].copy_(tensors["x"].topk(2).indices)
        return False

    def gather(tensors: Mapping[str, torch.Tensor], *call: object) -> bool:
        torch.gather(tensors["x"], 0, tensors["at"], out=tensors["o"])
        return False

    chosen = kernel("x", {"chosen": Output((2,), torch.int64)}, choose)
    read = kernel("x chosen", {"o": Output((2,), torch.float32)}, gather, {"at": "chosen"})
    assert run(chosen, read, outs=("o",))[0].tolist() == [3.0, 2.0]
    assert [len(x) for x in Graph(lambda given: (chosen, read), GIVEN, ("o",)).levels()] == [1, 1]


def test_what_no_node_writes_is_seen() -> None:
    """New memory is NaN where tests run."""
    (found,) = run(kernel("x", {"o": Output((3,), torch.float32)}, lambda *call: False), outs=("o",))
    assert found.isnan().all()


def test_a_tensor_is_freed_after_its_last_reader() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def first(tensors: Tensors, call: Given) -> None:
        kept.append(weakref.ref(tensors["a"]))

    def later(tensors: Tensors, call: Given) -> None:
        alive.append(kept[0]() is not None)

    made = Host("make", (), (), first, {"a": Output((2,), torch.float32), "o": Output((1,), torch.float32)})
    read, after = Host("read", ("a",), (), later), Host("after", (), (), later)
    run(made, read, after, outs=("o",))
    assert alive == [True, False]


def test_a_kernel_that_asks_for_a_smaller_one_gets_it_within_the_call() -> None:
    sizes = [3, 2, 1]
    ran: list[int] = []

    def nodes(given: Given) -> list[Node]:
        size = sizes[0]

        def launch(*call: object) -> bool:
            ran.append(size)
            return size > 1 and bool(sizes.pop(0))

        return [kernel("x", {"o": Output((1,), torch.float32)}, launch)]

    graph = Graph(nodes, GIVEN, ("o",))
    for _ in range(4):
        graph.run(dict(GIVEN.tensors))
    assert ran == [3, 2, 1, 1, 1, 1]


def test_a_graph_is_kept_and_the_tensors_of_its_call_are_not() -> None:
    attention = einfuse.compile("causal", backend="torch")
    leaves = [torch.randn(1, 1, 19, 8, requires_grad=True) for _ in range(3)]
    only(attention(*leaves)).sum().backward()
    before = len(attention.program.graphs)
    assert before >= 2, "one forward, one backward"
    only(attention(*leaves)).sum().backward()
    assert len(attention.program.graphs) == before
    gone = [weakref.ref(x) for x in leaves]
    del leaves
    gc.collect()
    assert not any(x() is not None for x in gone)


@pytest.mark.parametrize("name", ["causal", "efficient", "gla", "t5_bias"])
def test_a_picture_shows_every_node_of_a_training_step(name: str, tmp_path: Path) -> None:
    """One kernel; two stages; a scan; windows of rows, which are said once and drawn each."""
    assert main(["ir", name, "--graph", str(tmp_path / "a.svg")]) == 0
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    texts = {x.text for x in root.iter("{http://www.w3.org/2000/svg}text")}
    attention = einfuse.compile(name)
    inputs = {t.name for t in attention.cascade.inputs if not t.param}
    assert inputs <= texts
    for program in getattr(attention.program, "parts", (attention.program,)):
        assert any(str(x).startswith(program.cascade.name) for x in texts)


def test_lines_that_come_again_are_said_once() -> None:
    again = [Host("a", ("x",), ("x",), lambda *call: None), Host("b", ("x",), ("y",), lambda *call: None)]
    graph = Graph(lambda given: again * 3, GIVEN, ("y",))
    assert lines(graph) == ["a: x -> x", "b: x -> y", "... 3 times"]


@pytest.mark.parametrize("name", ["efficient", "two_axes", "mlp_bias"])
def test_stages_are_nodes_of_one_graph(name: str) -> None:
    """One operator runs them, forward and backward, and gradients that several stages give to one input are added up."""
    attention = einfuse.compile(name, backend="torch")
    inputs = example_inputs(attention.cascade, torch.float32, 0, Shape(1, 2, 20, 20, (4, 4), 1))
    leaves = [x.requires_grad_() for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    found, right = only(attention(**inputs)), only(attention.reference(**inputs, dtype=torch.float64))
    torch.testing.assert_close(found, right.float(), rtol=1e-4, atol=1e-5)
    up = torch.randn_like(found)
    wanted = torch.autograd.grad(right, leaves, up.double())
    for got, want in zip(torch.autograd.grad(found, leaves, up), wanted, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)
    forward = [
        g for key, g in attention.program.graphs.items() if key[0] == "forward"
    ]  # the program is shared: other tests add theirs
    assert forward
    for graph in forward:
        assert sum(isinstance(x, Part) for x in graph.nodes) == len(attention.stages) > 1


def test_a_kernel_that_does_not_fit_gives_way_before_anything_reads_what_it_did_not_write() -> None:
    sizes, ran = [3, 2, 1], list[str]()

    def nodes(given: Given) -> list[Node]:
        size = sizes[0]

        def smaller() -> bool:
            return len(sizes) > 1 and bool(sizes.pop(0))

        def launch(*call: object) -> bool:
            def run() -> None:
                ran.append(f"first {size}")
                if size > 1:
                    raise DoesNotFitError("too much")

            return tried(run, smaller)

        def after(*call: object) -> bool:
            ran.append("second")
            return False

        made = {n: Output((1,), torch.float32) for n in ("o", "p")}
        return [kernel("x", {"o": made["o"]}, launch), kernel("o", {"p": made["p"]}, after)]

    graph = Graph(nodes, GIVEN, ("p",))
    graph.run(dict(GIVEN.tensors))
    assert ran == ["first 3", "first 2", "first 1", "second"]
    with pytest.raises(DoesNotFitError, match="too much"):
        tried(functools.partial(_raise, DoesNotFitError("too much")), lambda: False)


def _raise(error: Exception) -> None:
    raise error


def test_what_triton_says_of_shared_memory_is_that_a_kernel_does_not_fit() -> None:
    triton = pytest.importorskip("triton.runtime.errors")

    def launch(*call: object, **options: int) -> None:
        raise triton.OutOfResources(102400, 101376, "shared memory")

    plan = types.SimpleNamespace(name="wide")
    found = TritonKernel(plan, types.SimpleNamespace(launch=launch))  # type: ignore[arg-type]
    with pytest.raises(DoesNotFitError, match=r"wide does not fit the device: .*102400.*101376"):
        found({}, {}, {})
