"""Compiling: what a missing or failing compiler says, what the cache is keyed by, and folders that cannot be written."""

import os
import sys
from pathlib import Path

import pytest
import torch
from plans import Code

from einfuse.codegen import cpu
from einfuse.codegen.plan import Arg, Block, KernelPlan
from einfuse.ir import EinfuseError

building = sys.modules["einfuse.codegen.cpu.build"]  # the attribute of that name is the function


def doubled() -> KernelPlan:
    c = Code(("i",))
    i = c.coordinate("i")
    x = c.load("x_i", "x", i)
    c.store("out", i, value=c.map("y", "+", x, x))
    return KernelPlan("doubled", "out[i] = x + x", (), Block("i", "N", 32), (), (Arg("x", 1, "f32"), Arg("out", 1, "f32", True)),
                      (), ("N",), (c.region,))  # fmt: skip


def test_a_build_is_kept_and_found_again(tmp_path, monkeypatch) -> None:
    plan = doubled()
    kernel = cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])
    x, out = torch.arange(50.0), torch.zeros(50)
    kernel({"x": x, "out": out}, {}, {"N": 50})
    assert torch.equal(out, 2 * x)
    assert [p.name for p in tmp_path.iterdir()] == [kernel.library.name]
    monkeypatch.setattr(building.subprocess, "run", lambda *a, **k: pytest.fail("compiled twice"))
    assert cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"]).library == kernel.library


def test_the_processor_and_the_compiler_are_part_of_the_name(tmp_path, monkeypatch) -> None:
    plan, names = doubled(), set()
    monkeypatch.setattr(building, "_compile", lambda compiler, options, source, path: path)
    monkeypatch.setattr(building, "_function", names.add)
    cpu.build(plan, cpu.emit(plan), tmp_path)
    monkeypatch.setattr(building, "processor", lambda: "another")
    cpu.build(plan, cpu.emit(plan), tmp_path)
    monkeypatch.setattr(building, "_version", lambda compiler: "another")
    cpu.build(plan, cpu.emit(plan), tmp_path)
    assert len(names) == 3


def test_cxxflags_come_last_and_are_part_of_the_name(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(building, "_compile", lambda compiler, options, source, path: seen.append((options, path)) or path)
    monkeypatch.setattr(building, "_function", lambda path: None)
    plan = doubled()
    for text in ("", "-O1", "-O1 -DNAME='a b'"):
        monkeypatch.setenv("CXXFLAGS", text)
        cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])
    (plain, _), (one, _), (two, _) = seen
    assert plain[-1] == "-O0" and one[-2:] == ["-O0", "-O1"] and two[-2:] == ["-O1", "-DNAME=a b"]
    assert len({path for _, path in seen}) == 3
    monkeypatch.setenv("CXXFLAGS", "-DNAME='a")
    with pytest.raises(cpu.BuildError, match="CXXFLAGS"):
        cpu.build(plan, cpu.emit(plan), tmp_path)


def test_no_compiler(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EinfuseError, match=r"no C\+\+ compiler"):
        cpu.build(doubled(), cpu.emit(doubled()), tmp_path)


def test_a_compiler_that_fails(tmp_path) -> None:
    with pytest.raises(cpu.BuildError, match="expected|error"):
        cpu.build(doubled(), "this is no C++", tmp_path, ["-O0"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    tmp_path.chmod(0o500)
    kernel = cpu.build(doubled(), cpu.emit(doubled()), tmp_path / "cache", ["-O0"])
    assert kernel.library.exists()


def test_a_file_in_the_way_of_the_folder(tmp_path) -> None:
    (tmp_path / "cache").write_text("")
    kernel = cpu.build(doubled(), cpu.emit(doubled()), Path(tmp_path / "cache"), ["-O0"])
    assert kernel.library.exists()


def test_text() -> None:
    """The same plan gives the same text; it holds the equations and the order of arguments."""
    text = cpu.emit(doubled())
    assert text == cpu.emit(doubled())
    assert "//   out[i] = x + x" in text
    assert "//   ptrs     x, out" in text
    assert "//   sizes    N, shape of x (1), shape of out (1)" in text
