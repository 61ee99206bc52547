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
A7   BUS | later | its scores are not published in enough detail; `one_row` and `cross` are its parts
A9   AxFormer | later | the rule by which keys are kept was not found; `topk` and `hard` are candidates
A40  IA-RED^2 | later | tokens are dropped by a policy that reinforcement trains; the attention between is `padding`
A44  SparseFormer | later | `deformable` samples its regions; the mixing by generated weights is not written
A45  TiC | later | the layout of its windows was not found; `neighborhood` and `swin` are its parts
A62  FMViT | later | the block is not published in enough detail; `HiLoAttention` and `InceptionMixer` are its kind
A64  Residual attention network | out   | a convolutional hourglass gives the mask, the gate is one product: `place_gate` has its form
A72  X-ray benchmark | out   | gates of convolutions across a pyramid
A73  Sparsifiner | later | the largest tenth of every row: a choice of so many keys needs selection, which is reserved
A75  CAMixerSR | later | predicted offsets are what `deformable` reads; the choice of windows is not written
A77  Routing Transformer | later | every centroid chooses its tokens: selection along the queries, and a scatter of what is read
A78  Triplet attention | out   | gates of convolutions: `TripletAttention` is plain torch
A86  Select and pack | later | the packing of chosen tokens is the caller's; what attends then is `document`
A92  Cross-lingual positions | later | how the two position encodings are mixed was not found
A110 MEDUSA | out   | gates of convolutions at several scales
A111 FlexAttention (vision-language) | later | the rule that chooses high-resolution tokens was not found; what reads them is `two_sources`
A118 Attention Swin U-Net | later | the cross-contextual weights are not published in enough detail
A122 FaViT | later | every query reads the means of equal slots of all windows: `cross` on pooled keys; the layer is not written
A131 MRA | later | the largest block pairs of a whole map: selection across rows, which is reserved
A133 SEMICON | later | its map between channels is `channel`; the masks of its stages are not published in enough detail
A135 DAS | out   | a deformable convolution and a gate
A137 Socialformer | later | the rule that draws the edges was not found; `edges` and `graph` read any
A138 ACLA | later | `deformable` across layers; its learned choice of keys is not written
A147 All-to-key attention | later | regions are merged by similarity before they are read; the layer is not written
A156 Geometric temporal dynamics | later | cross-attention between two networks, whose details were not found
A165 SkipViT | later | `one_row` tells which tokens wait; the network that they rejoin is not written
A166 Multi-scale token mergence | later | which tokens are merged into which was not found; `MergingAttention` is its kind
A181 HeadRouter | later | how the scale of a head follows from similarities was not found
B1   TSMixer | out   | networks across patches and channels; `token_mlp` mixes tokens
B2   ATLAS | later | an inner optimiser with Newton-Schulz steps; with a window of one token it is `delta`
B5   Scattering transform | out   | a wavelet transform
B7   ConvFormer | out   | large convolutions
B8   QMambaBSR | later | which parameters the base frame gives was not found; `mamba` is its scan
B9   Paraformer | out   | integrate and fire: the number of tokens depends on the data
B11  Activator | out   | gated linear maps of one token
B12  SpectFormer | out   | a Fourier transform; its later blocks are `full`
B15  Multi-dimensional Hyena | out   | long convolutions by a Fourier transform
B16  SPANet | out   | a Fourier transform
B17  Pervasive attention | out   | a convolutional network on all pairs
B18  LaMamba | later | windows and a scan in both directions: `swin` and `mamba`; the layer is not written
B19  Focal modulation | out   | depthwise convolutions and gates
B21  NiNformer | later | `token_mlp` is its mixer; the gated block is not written
B22  MambaOut | out   | convolutions and gates
B24  Shallow networks for attention | out   | a network that imitates attention
C1   Unified view | later | parts of one head on several devices: `split` makes partial states, nothing sends them
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
C12  BurstAttention | later | a ring of devices: `split` makes and merges the partial states, nothing sends them
C13  SpargeAttn | later | blocks chosen by pooled queries and keys: `routed_regions` chooses so, tiles are not skipped by it yet
C14  FlexAttention | works | scores and masks as functions, and any normaliser: docs/flex.md
C15  Flash window attention | works | rows that fit into one block become straight-line code: docs/architecture.md
C16  Packing | works | `einfuse.varlen`, jagged tensors, and `document`: docs/masks.md
C17  FuseMax | works | passes counted as written and after fusing: `einfuse passes`
C18  Sparsity in graph transformers | out   | learned masks of weights, heads and layers
C19  Unified sequence parallelism | later | heads and sequences shared out over devices; nothing sends them
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
