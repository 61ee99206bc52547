"""Machine code read from its text: kinds, loops, and wgmma that the assembler waits for. No compiler is run."""

from __future__ import annotations

import pytest

from einfuse.codegen.targets import TARGETS
from einfuse.codegen.triton.issue_model import Work, resident, work
from einfuse.codegen.triton.machine_code import Loop, MachineCode, kind, parse
from einfuse.codegen.triton.statistics import Iteration

HOPPER = TARGETS["sm_90"].rates
assert HOPPER is not None


def code(*lines: str) -> MachineCode:
    text = "\n".join(f"        /*{16 * n:04x}*/                   {x} ;   /* 0x0 */" for n, x in enumerate(lines))
    return MachineCode(parse(text), 64)


WGMMA = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24"


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("HGMMA.64x64x16.F32.BF16", "wgmma"),
        ("HMMA.16816.F32.BF16", "mma"),
        ("MUFU.EX2", "exp2"),
        ("MUFU.RCP", "special"),
        ("UTMALDG.4D", "copy ahead"),
        ("LDGSTS.E.BYPASS.128", "copy ahead"),
        ("UIADD3", "uniform"),
        ("ULDC.64", "uniform"),
        ("IMAD.WIDE", "integer"),
        ("I2FP.F32.S32", "convert"),
        ("F2FP.BF16.F32.PACK_AB", "convert"),
        ("LDSM.16.M88.4", "shared"),
        ("LDL.64", "spill"),
        ("LDG.E.128", "load"),
        ("ISETP.GE.AND", "compare"),
        ("WARPGROUP.DEPBAR.LE", "wait"),
        ("FRUMBLE", "other"),
    ],
)
def test_instructions_have_kinds(op: str, expected: str) -> None:
    assert kind(op) == expected


def test_a_loop_is_what_a_branch_backwards_repeats_and_the_innermost_with_products_is_reported() -> None:
    found = code("MOV R1, R2", "FADD R1, R1, R2", WGMMA, "@P0 BRA 0x20", "FMUL R1, R1, R1", "@P1 BRA 0x10", "EXIT")
    (loop,) = found.loops
    assert [i.op.split(".")[0] for i in loop.body] == ["HGMMA", "BRA"]
    assert loop.counts == {"wgmma": 1, "branch": 1}


def test_a_loop_without_products_is_none() -> None:
    assert code("FADD R1, R1, R2", "@P0 BRA 0x0", "EXIT").loops == ()


def test_waits_behind_the_end_of_a_kernel_are_no_loop() -> None:
    assert len(code(WGMMA, "@P0 BRA 0x0", "EXIT", "SYNCS R1", WGMMA, "BRA 0x10").loops) == 1


def test_wgmma_that_end_a_group_each_are_serialised() -> None:
    assert code(f"{WGMMA}, gsb0", f"{WGMMA}, gsb0", "EXIT").serialised
    assert not code(WGMMA, WGMMA, WGMMA, f"{WGMMA}, gsb0", "EXIT").serialised
    assert not code("EXIT").serialised


def test_operands_of_wgmma_are_told_apart() -> None:
    (left,) = parse(f"        /*0000*/  {WGMMA} ;")
    (held,) = parse("        /*0000*/  HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR4], R24 ;")
    assert (left.columns, left.from_shared) == (128, True)
    assert (held.columns, held.from_shared) == (64, False)


def test_spills_are_counted_in_the_whole_kernel() -> None:
    assert code("STL [R1], R2", WGMMA, "LDL R2, [R1]", "EXIT").spills == 2


def test_the_model_ranks_tiles_as_a_gpu_does() -> None:
    """Gradients of rows, width 64: programs of 64 x 64 took 0.78 of the time of those of 128 x 128 on an H200 (0.378 and 0.487 ms), though
    their loop is not as lean: three of them overlap on a multiprocessor that holds one of the others."""
    large, small = (Work(m, i, 0, 0, 0, 0, groups, ()) for m, i, groups in ((1536, 1024, 2), (384, 256, 1)))
    assert large.cycles(1, serialised=False) == 1536 + 1024 + 40
    assert 4 * small.cycles(3, serialised=False) / large.cycles(1, serialised=False) == pytest.approx(0.78, rel=0.06)


def test_serialised_products_cost_their_latency_which_another_program_fills() -> None:
    assert HOPPER is not None
    done = work(Iteration({"wgmma": 8}, ((64, True, 8),)), 8, HOPPER)
    alone, free = done.cycles(1, serialised=True), done.cycles(1, serialised=False)
    assert (alone - free, done.cycles(4, True) - done.cycles(4, False)) == (256, 0)


def test_programs_of_a_multiprocessor_share_registers_and_memory() -> None:
    gpu = HOPPER
    assert gpu is not None
    assert [resident(r, 8, 65536, gpu) for r in (128, 141)] == [2, 1]
    assert resident(40, 4, 200 * 1024, gpu) == 1


def test_a_loop_counts_by_kind() -> None:
    assert Loop(code(WGMMA, "FADD R1, R1, R2", "FADD R1, R1, R2").instructions).counts["add"] == 2
