"""The command explain, beside the counts that the literature gives for attention."""

import json

import pytest
import torch

import einfuse
from einfuse._cli.explain import explained
from einfuse.cli import main


def test_products_are_counted_as_in_the_literature() -> None:
    live, kernels = explained(einfuse.compile("full"), (2, 4, 1024, 512), torch.bfloat16, True, {"D": 32, "E": 32})
    pairs = 2 * 4 * 1024 * 512
    assert live == 1.0
    by_name = {k.plan.name: k.cost.work.products for k in kernels}
    assert by_name == {
        "full": 4 * pairs * 32,  # q . k and p . v
        "full_prepass": 0,
        "full_rows": 6 * pairs * 32,  # q . k, do . v, ds . k
        "full_columns_j": 8 * pairs * 32,  # q . k, do . v, p . do, ds . q
    }


def test_work_follows_the_mask() -> None:
    whole = explained(einfuse.compile("full"), (1, 1, 4096, 4096), torch.bfloat16, False, {})[1][0].cost
    live, (kernel,) = explained(einfuse.compile("sliding_window"), (1, 1, 4096, 4096), torch.bfloat16, False, {})
    assert 0.05 < live < 0.12, "256 of 4096 keys, and the tiles they touch"
    assert kernel.cost.work.products == pytest.approx(live * whole.work.products, rel=1e-6)
    assert kernel.cost.bytes == whole.bytes


def test_a_sigmoid_needs_no_more_special_functions_than_a_softmax() -> None:
    softmax, sigmoid = (
        explained(einfuse.compile(n), (1, 1, 1024, 1024), torch.bfloat16, False, {})[1][0].cost.work.special
        for n in ("causal", "sigmoid")
    )
    assert sigmoid <= softmax


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "causal", "--shape", "1,2,512,512", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kernels"][0]["bounds"]["h100"]["seconds"] > 0
    assert said["scores"][0] == {
        "name": "s",
        "ranks": ["i", "j"],
        "products": [{"name": "qk", "kind": "bilinear"}],
        "degree": 1,
        "position": "none",
        "tables": [],
        "bounded": False,
    }
    assert main(["explain", "causal", "--shape", "1,2,512,512"]) == 0
    said = capsys.readouterr().out
    assert "3 passes -> 1 over j" in said
    assert "score s: bilinear product qk (matrix units); affine in them" in said
    assert main(["explain", "moba", "--shape", "1,1,256,256", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["choices"] == [
        "sel: what is ranked is computed by kernels",
        "tables of truth values: an entry is 4 wide, and products of matrices want 16",
    ]
    assert main(["explain", "retention"]) == 1
    assert "is a scan" in capsys.readouterr().err


def test_the_crossover_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", "taylor_shift", "--shape", "1,4,1024,1024", "--dtype", "float32"]
    lengths = []
    for width in (16, 64):
        assert main([*command, "--size", f"D={width}", "--size", f"E={width}", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)["linear"]
        assert said["rank"] == width * (width // 2 + 1) + width + 1
        lengths.append(said["length"])
    assert 2 * lengths[0] < lengths[1], "the rank grows as the square of the width"
    assert main(command) == 0
    assert "2177 features, faster from N* =" in " ".join(capsys.readouterr().out.split())
    assert main(["explain", "taylor2", "--shape", "1,4,1024,1024", "--dtype", "bfloat16"]) == 0
    keys = 2 * 4 * 2177 * 65 // (128 * 2) + 1  # the state is read and written in fp32, a key and its value are 128 numbers
    assert f"fewer bytes than a query that reads {keys} keys" in " ".join(capsys.readouterr().out.split())
    assert main(["explain", "causal", "--shape", "1,2,512,512"]) == 0
    assert "no linear form: s_max is a max over j" in " ".join(capsys.readouterr().out.split())
