"""Every paper of the catalogue once, with what became of it: docs/catalogue.md, written by `python -m einfuse.library.catalogue`.

What works is told by `einfuse.library.mechanisms`; here stands the rest, with the reason. *later*: a spec or a layer could say it, and nobody
has written it, or its formula is not known well enough to be tested. *out*: it is no sum over tokens that a spec would describe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from einfuse.library.mechanisms import mechanisms

PAGE = Path(__file__).resolve().parents[1] / "docs" / "catalogue.md"
SECTIONS = {"A": ("Attention", 183), "B": ("Other ways to mix tokens", 24), "C": ("Executing attention", 19)}
REST = """
A64  Residual attention network | out   | a convolutional hourglass gives the mask, the gate is one product: `place_gate` has its form
A72  X-ray benchmark | out   | gates of convolutions across a pyramid
A78  Triplet attention | out   | gates of convolutions: `TripletAttention` is plain torch
A110 MEDUSA | out   | gates of convolutions at several scales
A135 DAS | out   | a deformable convolution and a gate
B1   TSMixer | out   | networks across patches and channels; `token_mlp` mixes tokens
B5   Scattering transform | out   | a wavelet transform
B7   ConvFormer | out   | large convolutions
B11  Activator | out   | gated linear maps of one token
B12  SpectFormer | out   | a Fourier transform; its later blocks are `full`
B15  Multi-dimensional Hyena | out   | long convolutions by a Fourier transform
B16  SPANet | out   | a Fourier transform
B17  Pervasive attention | out   | a convolutional network on all pairs
B19  Focal modulation | out   | depthwise convolutions and gates
B22  MambaOut | out   | convolutions and gates
B24  Shallow networks for attention | out   | a network that imitates attention
C1   Unified view | works | parts of one head on several devices, whose states go through the derived merge (`states`): docs/distributed.md
C2   Pre-RMSNorm | out   | a rewrite of the layers around attention
C3   Lean attention | works | long rows of keys in parts, merged by an associative operation that `split` derives: docs/architecture.md
C4   LRP-QViT | out   | quantisation
C5   RepQuant | out   | quantisation
C6   NoisyQuant | out   | quantisation
C7   Not all attention is needed | out   | leaves layers out
C8   Relaxed recursive transformers | out   | shares layers
C9   Blockwise compression | out   | quantisation
C10  MemoryFormer | out   | linear maps as lookups
C11  Q-HyViT | out   | quantisation
C12  BurstAttention | later | `shard` has all columns of other devices arrive before the kernel starts: no ring that computes while it sends
C13  SpargeAttn | works | `alike_blocks` chooses its blocks; a tile whose weights are small is not skipped while it runs
C14  FlexAttention | works | scores and masks as functions, and any normaliser: docs/flex.md
C15  Flash window attention | works | rows that fit into one block become straight-line code: docs/architecture.md
C16  Packing | works | `einfuse.varlen`, jagged tensors, and `document`: docs/masks.md
C17  FuseMax | works | passes counted as written and after fusing: `einfuse passes`
C18  Sparsity in graph transformers | out   | learned masks of weights, heads and layers
C19  Unified sequence parallelism | works | heads along one axis of a mesh and positions along another: `shard` in docs/distributed.md
"""
HEAD = """# The catalogue

Every paper of the catalogue that the library was written from, by its number there, and what became of it. Made by
`python -m einfuse.library.catalogue`; a test keeps it true. *works*: the specs and layers that are named say it, beside formulas written from
the paper ([the library](../library/README.md) has the record). *later*: it could be written, and the line says what is missing. *out*: it is no
attention between tokens, so that no spec would describe it.

"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One paper: ``status`` is works, later or out, ``what`` the specs and layers, or the reason."""

    number: str
    name: str
    status: str
    what: str


def entries() -> list[Entry]:
    """All of them, in the catalogue's order. Raises ValueError where a number is missing, comes twice, or has no status."""
    found = []
    for m in mechanisms():
        parts = [f"`{n}`" for n in (*m.specs, *m.layers)]
        found.append(Entry(m.number, m.name, "works", ", ".join(parts)))
    for line in REST.strip().splitlines():
        title, status, reason = (part.strip() for part in line.split("|"))
        number, _, name = title.partition(" ")
        if status not in ("works", "later", "out") or not reason:
            raise ValueError(f"{number}: a status is works, later or out, with its reason, found {line!r}")
        found.append(Entry(number, name.strip(), status, reason))
    wanted = [f"{letter}{n}" for letter, (_, most) in SECTIONS.items() for n in range(1, most + 1)]
    numbers = [e.number for e in found]
    wrong = sorted({n for n in numbers if numbers.count(n) > 1} | set(wanted) ^ set(numbers))
    if wrong:
        raise ValueError(f"missing, unknown, or there twice: {', '.join(wrong)}")
    return sorted(found, key=lambda e: wanted.index(e.number))


def page() -> str:
    """The text of docs/catalogue.md."""
    every = entries()
    parts = [HEAD]
    for letter, (title, _) in SECTIONS.items():
        mine = [e for e in every if e.number.startswith(letter)]
        counts = ", ".join(f"{sum(e.status == s for e in mine)} {s}" for s in ("works", "later", "out"))
        parts.append(f"## {title}\n\n{counts}.\n\n| number | paper | | specs and layers, or the reason |\n|---|---|---|---|\n")
        parts += [f"| {e.number} | {e.name} | {e.status} | {e.what} |\n" for e in mine]
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
