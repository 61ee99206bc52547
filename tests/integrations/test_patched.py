"""Patched modules in other people's hands: copies, pickles, averages, threads, compilers. (Without timm: a module that has its switch.)"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from einfuse.integrations import timm as integration

STOCK = functional.scaled_dot_product_attention
DEFINITION = '''
import torch
from torch import nn
from torch.nn import functional


class Switched(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.fused_attn = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
'''
exec(compile(DEFINITION, "switched.py", "exec"))
Switched: type[nn.Module] = globals()["Switched"]
X = torch.randn(2, 5, 8)


def stock(model: nn.Module) -> nn.Module:
    """An unpatched model with the same weights."""
    made = nn.Sequential(Switched(), Switched())
    made.load_state_dict(model.state_dict())
    return made


def patched() -> nn.Module:
    model = nn.Sequential(Switched(), Switched())
    assert integration.patch(model, backend="torch") == 2
    return model


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda m: copy.deepcopy(copy.deepcopy(m)),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": saved,
    "AveragedModel": lambda m: torch.optim.swa_utils.AveragedModel(m).module,
    "clones of a layer": lambda m: nn.Sequential(*nn.modules.transformer._get_clones(m[0], 2)),  # type: ignore[index]
    "patched again": lambda m: (integration.unpatch(m), integration.patch(m, backend="torch"), m)[2],
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
def test_a_copy_computes_with_its_own_weights(name: str, called: bool) -> None:
    model = patched()
    if called:
        model(X).sum().backward()
    made = COPIES[name](model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
            parameter.grad = None
    torch.testing.assert_close(made(X), stock(made)(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(X), stock(model)(X), rtol=1e-5, atol=1e-5)
    made(X).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert made is model or all((p.grad is not None) == called for p in model.parameters())
    assert integration.unpatch(made) == 2
    assert [type(m) for m in made] == [Switched, Switched]  # type: ignore[attr-defined]
    assert [m.fused_attn for m in made] == [False, False]  # type: ignore[attr-defined]
    assert made is model or integration.unpatch(model) == 2


def test_a_copy_stays_on_einfuse(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make(patched()) for make in COPIES.values()]
    calls: list[object] = []

    def counted(q: torch.Tensor, *_: object, **options: object) -> torch.Tensor:
        calls.append(options["backend"])
        return q

    monkeypatch.setattr("einfuse.integrations.sdpa.general", counted)
    for model in made:
        model(X)
    assert calls == ["torch"] * 2 * len(made)


def test_weights_are_loaded_and_replicas_have_their_own() -> None:
    model, other = patched(), stock(patched())
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(X), other(X), rtol=1e-5, atol=1e-5)
    replica = model[0]._replicate_for_data_parallel()  # type: ignore[index]
    replica.qkv = copy.deepcopy(replica.qkv)
    with torch.no_grad():
        replica.qkv.weight.mul_(2)
    single = Switched()
    single.load_state_dict(replica.state_dict(keep_vars=True))
    torch.testing.assert_close(replica(X), single(X), rtol=1e-5, atol=1e-5)
    functional_weights = {n: p * 2 for n, p in model.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(model, functional_weights, X),
        torch.func.functional_call(other, functional_weights, X),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
def test_a_saved_model_runs_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "switched.py").write_text(DEFINITION)
    program = """
import sys, torch, switched, einfuse
model = torch.nn.Sequential(switched.Switched())
if sys.argv[1] == "save":
    einfuse.integrations.timm.patch(model, backend="torch")
    torch.save((model, model(torch.ones(1, 3, 8))), "model.pt")
else:
    model, expected = torch.load("model.pt", weights_only=False)
    torch.testing.assert_close(model(torch.ones(1, 3, 8)), expected)
    assert einfuse.integrations.timm.unpatch(model) == 1
    torch.testing.assert_close(model(torch.ones(1, 3, 8)), expected)
"""
    for what in ("save", "load"):
        subprocess.run([sys.executable, "-c", "import einfuse.integrations\n" + program, what], cwd=tmp_path, check=True)


def test_threads_and_exceptions_leave_torch_as_it_was() -> None:
    model, expected = patched(), None
    expected = stock(model)(X)

    def serve(n: int) -> None:
        if n % 5 == 0:
            with pytest.raises(RuntimeError):
                model(X[..., :3])
        else:
            with torch.no_grad():
                torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(40)))
    assert functional.scaled_dot_product_attention is STOCK
    assert torch.backends.mha.get_fastpath_enabled()
    functional.scaled_dot_product_attention(X, X, X, dropout_p=0.1)


def test_a_class_that_was_changed_meanwhile_is_said() -> None:
    model = Switched()
    model.forward = lambda x: x  # as accelerate's hooks do
    with pytest.raises(ValueError, match=r"2: its `forward` was replaced by <function .*; patch the model before that"):
        integration.patch(nn.Sequential(nn.Identity(), nn.Identity(), model))
    above = Switched()
    integration.patch(above, backend="torch")
    above.__class__ = type("Sharded", (type(above),), {})  # as FSDP does
    torch.testing.assert_close(above(X), stock(nn.Sequential(above, above))[0](X), rtol=1e-5, atol=1e-5)  # type: ignore[index]
    with pytest.raises(ValueError, match="the class Sharded was changed after `patch`"):
        integration.unpatch(above)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_a_patched_model_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(sum("einfuse" in str(n.target) for n in graph.graph.nodes))
        return graph.forward

    model = patched()
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    for each in (X, X.requires_grad_()):
        torch.testing.assert_close(compiled(each), stock(model)(each), rtol=1e-5, atol=1e-5)
    assert set(graphs) == {2}
    exported = torch.export.export(model, (X,), strict=True).module()
    torch.testing.assert_close(exported(X), stock(model)(X), rtol=1e-5, atol=1e-5)
    integration.unpatch(model)
    torch.testing.assert_close(compiled(X), stock(model)(X), rtol=1e-5, atol=1e-5)
    assert graphs[-1] == 0
