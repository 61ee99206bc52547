"""`MachineCode`: the instructions of a compiled NVIDIA kernel, its loops, and what each is made of. Nothing here needs a GPU."""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_KINDS = (
    ("wgmma", r"HGMMA|QGMMA|IGMMA"),
    ("mma", r"HMMA|QMMA|IMMA|OMMA|DMMA"),
    ("tcgen05", r"UTC\w*MMA"),
    ("exp2", r"MUFU\.EX2"),
    ("special", r"MUFU"),
    ("fma", r"FFMA|HFMA2|DFMA"),
    ("mul", r"FMUL|HMUL2|DMUL"),
    ("add", r"FADD|HADD2|DADD"),
    ("extremum", r"FMNMX|HMNMX2"),
    ("compare", r"FSETP|FSET|ISETP|ISET|PLOP|P2R|R2P|DSETP"),
    ("select", r"FSEL|SEL\b"),
    ("convert", r"F2F|I2F|F2I|FRND|I2I"),
    ("copy ahead", r"LDGSTS|UTMALDG|UBLKCP"),
    ("copy back", r"UTMASTG|UTMAREDG"),
    ("spill", r"LDL|STL"),
    ("shared", r"LDSM|LDS|STSM|STS|ATOMS|MOVM"),
    ("load", r"LDG|LD\b"),
    ("store", r"STG|ST\b|RED|ATOM"),
    ("shuffle", r"SHFL"),
    ("wait", r"WARPGROUP|WARPSYNC|BAR|SYNCS|DEPBAR|LDGDEPBAR|MEMBAR|FENCE|BSYNC|BSSY|ERRBAR|CCTL|NANOSLEEP|ELECT|VOTE|ARRIVES"),
    ("uniform", r"ULDC|LDCU|LDC|R2UR|UR2UR|S2R|S2UR|CS2R|U[A-Z]"),
    ("integer", r"IMAD|IDP|IADD|VIADD|VIMNMX|IMNMX|LEA|IABS|LOP|SHF|SHL|SHR|PRMT|BMSK|SGXT|POPC|FLO|BREV|I"),
    ("move", r"MOV"),
    ("branch", r"BRA|EXIT|RET|CALL|JMP|YIELD|NOP|BREAK|BMOV|BRX|USETMAXREG"),
)
KINDS = tuple(name for name, _ in _KINDS)
"""The classes that instructions are counted by; what fits none is "other"."""
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _KINDS)
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Za-z0-9_.]+)\s*(.*?);")
_SHAPE = re.compile(r"\w+\.(\d+)x(\d+)x(\d+)")


@functools.cache
def kind(op: str) -> str:
    """The class of an instruction by its name."""
    return next((name for name, pattern in _PATTERNS if pattern.match(op)), "other")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its address, the predicate it runs under ("" if none), its name with modifiers, and its operands as text."""

    address: int
    predicate: str
    op: str
    operands: str

    @property
    def kind(self) -> str:
        return kind(self.op)

    @property
    def waits(self) -> bool:
        """Whether a wgmma ends a group: the next instruction that needs its result waits for it and for all before."""
        return self.kind == "wgmma" and "gsb" in self.operands

    @property
    def columns(self) -> int:
        """The width of a wgmma's result, 0 for other instructions."""
        found = _SHAPE.match(self.op) if self.kind == "wgmma" else None
        return int(found[2]) if found else 0

    @property
    def from_shared(self) -> bool:
        """Whether a wgmma reads its left operand from shared memory."""
        parts = self.operands.split(",")
        return self.kind == "wgmma" and len(parts) > 1 and parts[1].strip().startswith("gdesc")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop, in the order of their addresses."""

    body: tuple[Instruction, ...]

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """Instructions of a thread by `kind`."""
        return Counter(i.kind for i in self.body)

    @property
    def multiplies(self) -> bool:
        return any(self.counts[k] for k in ("wgmma", "mma", "tcgen05"))


@dataclass(frozen=True)
class MachineCode:
    """A kernel's instructions, and the registers of a thread."""

    instructions: tuple[Instruction, ...]
    registers: int

    @staticmethod
    def of(cubin: bytes) -> MachineCode:
        """Disassembles what Triton's NVIDIA back end made."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            usage, text = (_cuobjdump(flag, file.name) for flag in ("-res-usage", "-sass"))
        registers = re.search(r"REG:(\d+)", usage)
        assert registers is not None, f"cuobjdump names no registers: {usage}"
        return MachineCode(parse(text), int(registers[1]))

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """Instructions of a thread by `kind`, over the whole kernel."""
        return Counter(i.kind for i in self.instructions)

    @property
    def spills(self) -> int:
        """Loads and stores of registers that did not fit."""
        return self.counts["spill"]

    @property
    def serialised(self) -> bool:
        """Whether the assembler waits for (nearly) every wgmma by itself: then none runs beside anything else."""
        every = [i for i in self.instructions if i.kind == "wgmma"]
        return bool(every) and sum(i.waits for i in every) > 0.75 * len(every)

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The innermost loops that hold matrix instructions, in the order of their addresses."""
        found = [(a, b) for a, b in _spans(self.instructions) if self._inside(a, b).multiplies]
        plain = [(a, b) for a, b in found if not any(i.op == "EXIT" and not i.predicate for i in self.instructions[a : b + 1])]
        inner = [(a, b) for a, b in plain if not any((c, d) != (a, b) and a <= c and d <= b for c, d in plain)]
        return tuple(self._inside(a, b) for a, b in inner)

    def _inside(self, first: int, last: int) -> Loop:
        return Loop(self.instructions[first : last + 1])


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of ``cuobjdump -sass``."""
    lines = (_LINE.match(line) for line in text.splitlines())
    return tuple(Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in lines if m)


def _spans(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """First and last place of every loop: the target of a branch backwards, and the last branch to it."""
    place = {i.address: n for n, i in enumerate(code)}
    ends: dict[int, int] = {}
    for n, i in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", i.operands) if i.op.startswith("BRA") and not i.op.startswith("BRA.DIV") else None
        start = place.get(int(target[1], 16)) if target else None
        if start is not None and start < n:
            ends[start] = max(n, ends.get(start, n))
    return sorted(ends.items())


def _cuobjdump(flag: str, path: str) -> str:
    root = Path(str(importlib.import_module("triton").__file__)).parent
    program = root / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, flag, path], capture_output=True, text=True, check=True).stdout
