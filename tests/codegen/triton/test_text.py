"""The generated text: what it imports, says and leaves out. (What it computes is tested elsewhere.)"""

import ast
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import CASES, sigmoid, softmax

import einfuse
from einfuse.codegen.plan import Fold, KernelPlan, Map, Value, finished
from einfuse.codegen.triton import Options, build, emit, launch_options, tilings
from einfuse.codegen.triton.simplify import PASSES


def loops(text: str) -> list[str]:
    """The text from each loop's head to the next one's, of the kernel with pointers."""
    return re.split(r"\n    for ", pointed(text))[1:]


def pointed(text: str) -> str:
    """A module up to its kernel with descriptors."""
    return re.split(r"\n@triton.jit[^\n]*\ndef \w+_described", text)[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("storage", ["bf16", "f32", "f64"])
def test_module(name: str, storage: str) -> None:
    plan = CASES[name](storage=storage).plan
    text = emit(plan)
    tree = ast.parse(text)
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for a in node.names}
    assert imported - {"TensorDescriptor"} == {"torch", "triton", "triton.language"}
    assert plan.equations in (ast.get_docstring(tree) or "")
    assert max(map(len, text.splitlines())) <= 140
    assert not re.search(r"[ \t]$|\n\n\n\n", text, re.MULTILINE)
    assert emit(CASES[name](storage=storage).plan) == text


def test_narrow_blocks_reach_the_product_as_they_lie_in_memory() -> None:
    text = emit(softmax("bf16", widths=(64, 64)).plan)
    assert "tl.trans(k_1)" in text
    assert "_dot(_packed_bf16(p_1), v_1, acc=acc_old_1)" in text
    assert "tl.float32)\n" not in "".join(line + "\n" for line in text.splitlines() if "_ptr" in line)


def test_numbers_are_rounded_by_pairs_where_the_target_has_an_instruction_for_it() -> None:
    plan = softmax("f16", widths=(64, 64)).plan
    assert "tl.dot(_packed_f16(p_1), v_1" in emit(plan)
    assert "tl.dot(tl.cast(p_1, tl.float16), v_1" in emit(plan, Options("gfx942"))


def test_a_block_read_twice_is_kept_in_both_types() -> None:
    text = emit(CASES["cosine"]("bf16").plan)
    assert "q_raw_bf16 = tl.load(" in text
    assert "q_raw = q_raw_bf16.to(tl.float32)" in text


def test_full_phases_have_no_bounds() -> None:
    masked, full, last = loops(emit(softmax(widths=(64, 64)).plan))
    assert masked.count("mask=(j[:, None] < Nk)") == last.count("mask=(j[:, None] < Nk)") == 2
    assert "mask=" not in full


def test_exponential_of_a_difference_is_one_multiply_add() -> None:
    full = loops(emit(softmax().plan))[1]
    assert "tl.exp2(qk_2 * (scale * LOG2E) - (m_ref_2 * LOG2E)[:, None])" in full
    assert "shifted" not in full


def test_unread_values_are_dropped() -> None:
    plan = softmax().plan
    region, loop, end = plan.steps
    assert isinstance(loop, Fold)
    extra = Map(Value("unread", ("i", "j"), "float"), "sin", (loop.phases[0].updates[0],))
    phase = replace(loop.phases[0], body=(*loop.phases[0].body, extra))
    changed = replace(plan, steps=(region, replace(loop, phases=(phase, *loop.phases[1:])), end))
    assert emit(changed) == emit(plan)
    assert finished(finished(plan, PASSES), PASSES) == finished(plan, PASSES)


@pytest.mark.parametrize(("fn", "helpers"), [("sigmoid", set()), ("softplus", {"_softplus", "_log1p"}), ("tanh", {"_tanh"})])
def test_helpers_are_defined_where_used(fn: str, helpers: set[str]) -> None:
    tree = ast.parse(emit(sigmoid(fn=fn).plan))
    assert {f.name for f in tree.body if isinstance(f, ast.FunctionDef)} == {fn, "launch"} | helpers


def test_programs_of_one_head_are_neighbours() -> None:
    text = emit(softmax().plan)
    assert "tile = program % tiles" in text
    assert "tile = tiles - 1 - program % tiles" in emit(softmax().plan, Options(descending=True))
    assert 'sizes["B"] * sizes["H"] * triton.cdiv(sizes["Nq"], 32)' in text


def test_options() -> None:
    plan = softmax().plan
    text = emit(plan, Options(num_warps=2, num_stages=5, precision="tf32x3"))
    assert '"num_warps": 2, "num_stages": 5' in text
    assert 'input_precision="tf32x3"' in text
    assert 'input_precision="ieee"' in emit(plan)
    assert "input_precision" not in emit(softmax("bf16").plan)


def test_small_tiles_are_widened_for_the_matrix_units() -> None:
    text = emit(softmax(tile=4).plan)
    assert "BLOCK_I=16" in text
    assert 'triton.cdiv(sizes["Nq"], 4)' in text
    assert "i_hi = tl.minimum(i_lo + 4, Nq)" in text
    assert "tl.dot(" in text
    assert "tl.dot(" not in emit(softmax(step=8).plan)


@pytest.mark.slow
def test_tiles_of_a_known_number_of_rows_stay_tiles() -> None:
    """The 2177 features of a polynomial are rows of a kernel: 4096 of them in every program computed the same 32 times."""
    plan = softmax(storage="bf16").plan
    assert plan.tile is not None
    known = replace(plan, tile=replace(plan.tile, size=2177))
    tiles = {frozenset(re.findall(r"BLOCK_I=(\d+)", emit(p))) for p in (known, plan)}
    assert tiles == {frozenset({str(plan.tile.block)})}


def test_kernels_over_pairs_and_features_have_somewhere_left_to_go() -> None:
    """At a step of 4 the gradient of GATv2 keeps its values in registers, on warps enough; at 8 it does not."""
    attention = einfuse.compile("gatv2")
    for target in ("sm_80", "sm_90", "gfx942"):
        ladder = tilings("bf16", 64, 2, target)
        assert ladder[-2:] == ((16, 8), (16, 4))
        assert len(set(ladder)) == len(ladder)
    (rows,) = (c for c in attention.candidates("triton", torch.bfloat16, True, {}, "sm_90") if c.plan.name == "gatv2_rows")
    while less := rows.smaller():
        (rows,) = less
    assert isinstance(rows.plan, KernelPlan)
    assert rows.plan.tile is not None
    assert [s.step for s in rows.plan.folds] == [4]
    assert launch_options(rows.plan)["num_warps"] == 8


def test_launch_options() -> None:
    """More registers held: more warps. Wider blocks streamed: fewer stages."""
    small, large = softmax("bf16", (64, 64), 64, 64).plan, softmax("bf16", (128, 128), 128, 64).plan
    assert launch_options(small) == {"num_warps": 4, "num_stages": 3}
    assert launch_options(large) == {"num_warps": 8, "num_stages": 3}
    assert launch_options(softmax("bf16", (256, 256), 64, 128).plan)["num_stages"] == 1
    assert launch_options(softmax("f32", (128, 128), 32, 32).plan) == {"num_warps": 16, "num_stages": 1}
    assert launch_options(large, "gfx942") == {"num_warps": 4, "num_stages": 1}


def test_equal_texts_are_loaded_once(tmp_path: Path) -> None:
    plan = softmax(widths=(8, 9)).plan
    first, second = build(plan, emit(plan), tmp_path), build(plan, emit(plan), tmp_path)
    assert first.module is second.module
    assert [p.suffix for p in tmp_path.iterdir() if p.is_file()] == [".py"]


@pytest.mark.parametrize("change", [{"step": 24}, {"size": ""}])
def test_faulty_plans_are_refused(change: dict[str, Any]) -> None:
    plan = softmax().plan
    faulty = replace(plan, steps=tuple(replace(s, **change) if isinstance(s, Fold) else s for s in plan.steps))
    with pytest.raises(AssertionError, match=r"step 24|no size"):
        emit(faulty)


def test_infinities_are_literals() -> None:
    assert f'float("{-math.inf}")' in emit(softmax().plan)


def test_hazard_1_no_loop_widens_its_index() -> None:
    """The assembler waits for every wgmma of a kernel in which LLVM has widened a loop's index: offsets in 64 bits are carried instead."""
    for case in ("softmax", "softmax_backward", "sigmoid"):
        for loop in loops(emit(CASES[case]("bf16", widths=(64, 64)).plan)):
            index = loop.split()[0]
            assert f"tl.cast({index}, tl.int64)" not in loop
            assert re.search(r"\n        \w+ \+= BLOCK_\w \* \w+_64", loop)


def test_offsets_of_a_loop_begin_at_its_first_block() -> None:
    text = pointed(emit(softmax("bf16", widths=(64, 64)).plan))
    starts = re.findall(r"\n    (k_j\w*) = (\w+) \* k_s\d_64", text)
    bounds = re.findall(r"for \w+ in tl.range\((\w+), ", text)
    assert [lo for _, lo in starts] == bounds


@pytest.mark.parametrize("name", ["constant_map", "decoupled"])
def test_scores_that_no_product_makes_take_registers_too(name: str) -> None:
    """128 x 128 scores on 128 threads are 128 registers of each, beside the sums that they are added to."""
    (found,) = einfuse.compile(name).candidates("triton", torch.bfloat16, False, {"D": 128, "E": 128}, "sm_90")
    assert isinstance(found.plan, KernelPlan)
    assert launch_options(found.plan)["num_warps"] == 8


@pytest.mark.parametrize("name", ["nap", "softmax_standardised"])
def test_no_number_is_told_from_infinity_by_what_it_is_less_itself(name: str) -> None:
    """A compiler makes a * b - a * b one operation, and the error of the product of it: 0 was then taken for the mean of every row."""
    for c in einfuse.compile(name).candidates("triton", torch.bfloat16, True, {}, "sm_90"):
        assert not re.search(r"= (\w+) - \1\b", c.source), c.plan.name


def test_no_product_is_summed_along_the_middle_of_three_axes() -> None:
    """Triton makes a matrix product of that: in tf32, and of single points."""
    for c in einfuse.compile("delta_product").candidates("triton", torch.bfloat16, True, {"D": 24, "E": 40}, "sm_90"):
        assert "_middle_sum(" in c.source
        assert not re.search(r"\[None, :, :\], (axis=)?1\)", c.source)
