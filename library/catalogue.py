"""Every paper of the catalogue once, with what became of it: docs/catalogue.md, written by `python -m einfuse.library.catalogue`.

What works is told by `einfuse.library.mechanisms`; here stands the rest, with the reason. *later*: a spec or a layer could say it, and nobody
has written it, or its formula is not known well enough to be tested. *out*: no operation of a model, or nobody published what it computes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from einfuse.library.mechanisms import mechanisms, parsed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "catalogue.md"
SECTIONS = {"A": ("Attention", 183), "B": ("Other ways to mix tokens", 24), "C": ("Executing attention", 19)}
REST = """
A72  X-ray benchmark | out   | gates across the levels of a pyramid; missing: which levels meet, what joins them, sizes of the convolutions
B24  Shallow networks for attention | out   | imitates one trained attention of one length; missing: its weights, which are not published
C1   Unified view | works | parts of one head on several devices, whose states go through the derived merge (`states`): docs/distributed.md
C2   Pre-RMSNorm | works | `pre_rms_norm` rewrites a model and checks that it is the same
C3   Lean attention | works | long rows of keys in parts, merged by an associative operation that `split` derives: docs/architecture.md
C4   LRP-QViT | out   | which layer gets how many bits, by a relevance measured on a trained model: no operation
C5   RepQuant (its weights) | works | `log2_weights`; keys and values as integers: `quantise` in docs/architecture.md
C6   NoisyQuant | out   | a fixed noise added to activations before their linear maps are quantised: nothing of attention
C7   Not all attention is needed | works | `redundancy` measures layers, `without` leaves them out
C8   Relaxed recursive transformers | works | `RecursiveStack`: one block with a correction for each depth; no batching across depths
C9   Blockwise compression | out   | softmax, GELU and norms in 8 bits: missing: the tables and polynomials of the integer functions
C10  MemoryFormer | out   | linear maps as lookups by hashes of parts of a vector; the attention between them is `full`
C11  Q-HyViT | out   | which block is rebuilt with which scales, found by search on a trained model: no operation
C12  BurstAttention | later | `shard` has all columns of other devices arrive before the kernel starts: no ring that computes while it sends
C13  SpargeAttn | works | `alike_blocks` chooses its blocks; a tile whose weights are small is not skipped while it runs
C14  FlexAttention | works | scores and masks as functions, and any normaliser: docs/flex.md
C15  Flash window attention | works | rows that fit into one block become straight-line code: docs/architecture.md
C16  Packing | works | `einfuse.varlen`, jagged tensors, and `document`: docs/masks.md
C17  FuseMax | works | passes counted as written and after fusing: `einfuse passes`
C18  Sparsity in graph transformers | out   | masks of weights, heads and layers that training finds: no operation
C19  Unified sequence parallelism | works | heads along one axis of a mesh and positions along another: `shard` in docs/distributed.md
"""
NEWER = """
N1 Multi-head latent attention, expanded and absorbed (DeepSeek-V2, 2024) | mla mla_absorbed |
N2 DeepSeek sparse attention: tokens by an indexer (DeepSeek-V3.2, 2025) | sparse_tokens |
N3 Hierarchically indexed sparse attention (2026) | hierarchical_tokens |
N4 Mixture of block attention (MoBA, 2025) | moba |
N5 Native sparse attention's chosen branch by groups (NSA, 2025) | nsa_selected | NativeSparseAttention
N6 Grouped latent attention (GLA, 2025) | grouped_latent |
N7 Grouped tied attention (GTA, 2025) | grouped_tied |
N8 Tensor product attention (TPA, 2025) | tensor_product |
N9 Kimi delta attention (Kimi Linear, 2025) | kda |
N10 Gated delta net as in Qwen3-Next (2025) | gated_delta_net |
N11 DeltaProduct (2025) | delta_product |
N12 RWKV-7 (2025) | rwkv7 |
N13 RWKV-6 (2024) | rwkv6 |
N14 Mamba-2 (2024) | ssd |
N15 Mamba-3 (2026) | mamba3 |
N16 HGRN2 (2024) | hgrn2 |
N17 Gated slot attention (2024) | gated_slots |
N18 Longhorn (2024) | longhorn |
N19 Titans' neural memory (2025) | titans |
N20 TTT-Linear (2024) | ttt_linear |
N21 LoLCATs: a window and a linear remainder (2025) | window_linear |
N22 Infini-attention (2024) | infini |
N23 mLSTM (xLSTM, 2024) | mlstm |
N24 PaTH: Householder transitions between keys (2025) | path |
N25 Forgetting transformer (2025) | forgetting |
N26 Stick-breaking attention (2025) | stick_breaking |
N27 Log-linear attention (2025) | log_linear |
N28 Power attention (2025) | polynomial |
N29 Scalable softmax (2025) | scalable |
N30 Selective attention (2025) | selective |
N31 Differential transformer (2025) | differential |
N32 Differential transformer, second version (2026) | differential_v2 |
N33 Multi-token attention: convolved scores (2025) | multi_token |
N34 Gated attention: a gate behind what is read (2025) | gated_output |
N35 Softpick (2025), with a sink | softpick softpick_sink |
N36 Squared ReLU with a sink | relu2 relu2_sink |
N37 Sinks and local layers of gpt-oss (2025) | sink sink_window |
N38 LASER (2024) | laser |
N39 Tropical attention (2025) | tropical |
N40 Adaptive temperature (2024) | adaptive_temperature |
N41 Norms of queries and keys (2023 and later) | qk_norm |
N42 NoPE layers with a temperature and chunks (Llama 4, 2025) | nope_temperature chunked |
N43 NTK-aware rotary positions (2023) | ntk_rope |
N44 YaRN (2024) | yarn |
N45 LongRoPE (2024) | longrope |
N46 Rotary positions in parts of a head | partial_rope |
N47 M-RoPE, and interleaved (Qwen2-VL, 2024; Qwen3-VL, 2025) | mrope interleaved_mrope |
N48 Rotary positions of a video | rope_3d |
N49 CoPE (2024) | cope |
N50 Capped scores, local and global (Gemma 2, 2024) | softcap softcap_window |
N51 StreamingLLM: sinks and a window (2024) | streaming |
N52 Block diffusion (BD3-LM, 2025) | block_diffusion |
N53 Any order (2019, 2024) | any_order |
N54 Trees of drafts (2024) | tree |
N55 Sliding tile attention (2025) | sliding_tile |
N56 Radial attention (2025) | radial |
N57 Blocks of a video (2025) | video_blocks |
N58 Values of the first layer (speed runs, 2024) | value_residual | ValueResidualAttention
N59 Keys and values across layers (YOCO, CLA, 2024) | causal | CrossLayerAttention
N60 Quest: pages by bounds of their keys (2024) | quest |
N61 SnapKV (2024) | snapkv |
N62 SparQ (2024) | sparq |
N63 Vertical and slash lines (MInference, 2024) | vertical_slash |
N64 Blocks by their mass (XAttention, FlexPrefill, 2025) | mass_blocks |
N65 Twilight: the smallest set of keys of a mass (2025) | top_p |
N66 Heavy hitters (H2O, 2023) | heavy_hitters |
N67 Mixture of sparse attention, and of depths (2025, 2024) | expert_tokens |
"""
HEAD = """# The catalogue

Every paper of the catalogue that the library was written from, by its number there, and what became of it. Made by
`python -m einfuse.library.catalogue`; a test keeps it true. *works*: the specs and layers that are named say it, beside formulas written from
the paper ([the library](../library/README.md) has the record). Where no spec stands among them, they are convolutions, transforms
and gates, in which no token meets another through a score. *later*: it could be written, and the line says what is missing. *out*: the line
says why it is not here.

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
    newer = parsed(NEWER)
    parts.append(f"## What came after\n\n{len(newer)} mechanisms that are newer than the catalogue, or beside it.\n\n")
    parts.append("| | mechanism | specs and layers |\n|---|---|---|\n")
    parts += [f"| {m.number} | {m.name} | {', '.join(f'`{n}`' for n in (*m.specs, *m.layers))} |\n" for m in newer]
    return "".join(parts)


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
