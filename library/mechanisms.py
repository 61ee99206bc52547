"""Which mechanisms of the catalogue work, and what holds them. `python -m einfuse.library.mechanisms` checks and counts them.

A line is the catalogue's number, a name, the specs, and the layers around them where the mechanism is more than its attention.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import einfuse
from einfuse.library import layers, verified

TEXT = """
A2   FOD                             | prior_map                   |
A3   Transformer in Transformer      | full                        | InnerOuterAttention
A4   D-Former                        | volume_window               | VolumeAttention
A8   CrossViT                        | full                        | CrossBranchAttention
A11  DRCT                            | swin_window                 | SwinAttention
A12  URPE                            | urpe                        | UrpeAttention
A13  CSWin                           | cross_shaped                | CrossShapedAttention
A15  Graph transformer               | graph_transformer           | EdgeGraphAttention
A17  CrossFormer                     | swin_window                 | CrossFormerAttention
A18  HAT                             | overlapping_window          | OverlappingAttention
A19  MASFormer                       | causal sliding_window       | MixedSpanAttention
A20  Combiner                        | combiner                    |
A21  iTransformer                    | full                        | VariateAttention
A22  T2T-ViT                         | full performer_both         | TokensToToken
A28  RMT                             | rmt                         | ManhattanAttention
A29  TokenFormer                     | pattention                  | Pattention
A30  CvT                             | full                        | ConvProjectionAttention
A31  kMaX-DeepLab                    | kmax                        |
A32  Sigmoid attention               | sigmoid                     | SigmoidAttention
A33  ESSAformer                      | spectral_tokens             |
A37  EcoFormer                       | hashed_codes                |
A38  ShiftAddViT                     | linear_angular              |
A39  DLGSANet                        | channel_relu                | SparseChannelAttention
A42  BatchFormer                     | full                        | BatchAttention
A46  FiTv2                           | rope_2d                     |
A47  DeFTAN-II                       | efficient                   |
A49  HiLo                            | full                        | HiLoAttention
A50  Infinite prefix                 | infinite_prefix             | InfinitePrefixAttention
A51  ReLU attention                  | relu                        |
A52  Graphix-T5                      | relation                    | RelationalGraphAttention
A54  SLAB                            | relu_linear                 |
A59  Power-Softmax                   | power                       | PowerSoftmaxAttention
A61  MossFormer                      | gated_groups                |
A66  GAT                             | gat                         | GraphAttention
A69  DAN                             | decoupled                   |
A70  RIN                             | interface full                  | SharedReadAttention
A74  TransNeXt                       | aggregated                  |
A76  Coarse-to-fine attention        | coarse_to_fine              |
A79  Input combination (flat)        | two_sources                 |
A81  Sliding-window convolutions     | neighborhood                |
A83  Decoupled head sizes            | full                        |
A87  FormNet                         | rich                        |
A89  Pay better attention            | full                        | EfficientAttention SuperAttention
A90  RCAN                            | squeeze                     |
A95  FasterViT                       | carriers head_bias          | CarrierTokenAttention
A96  LookHere                        | lookhere                    | LookHereAttention
A97  ResFormer, SVFormer             | causal                      | ValueResidualAttention
A99  Skim-Attention                  | shared_map                  | SkimAttention
A100 MoA (spans)                     | head_spans                  | HeadSpanAttention
A101 HaloNet                         | halo halo_relative          | HaloAttention
A102 Squeeze-and-Excitation          | squeeze                     |
A103 SRFormer                        | permuted_window             | PermutedWindowAttention
A104 Cog                             | cog                         | CogAttention
A112 NesT                            | full                        | NestedAttention
A117 cosFormer                       | cosine_weighted             |
A120 MaxViT                          | grid swin_window                 | MaxViTAttention
A124 Inf-DiT                         | block_causal                | BlockCausalAttention
A129 Shaped transformer              | shaped                      | ShapedAttention
A130 Length-scaled temperature       | length_scaled               | LengthScaledAttention
A134 SANA                            | relu_linear                 |
A139 CrossMAE                        | cross                       |
A141 Learned aggregation             | full                        | ClassQueryPooling
A142 FAST                            | fast                        |
A143 NAT, DiNAT                      | neighborhood neighbourhood neighbourhood_2d | NeighborhoodAttention
A145 AttnGAN's DAMSM                 | two_axes                    |
A148 Fisher information embedding    | fisher                      |
A149 Lightning Attention             | retention packed_linear     | LightningAttention
A151 Multi-source attention          | additive full               | MultiSourceAttention AdditiveAttention
A152 Bottleneck transformers         | halo_relative               |
A153 NAP                             | nap                         | NormalizedAttentionPooling
A154 CoaT                            | factorised                  |
A155 GATv2                           | gatv2                       | GraphAttentionV2
A157 LSSAR                           | lssar                       | SoftplusAttention
A158 DaViT                           | channel                     | ChannelAttention
A159 CLEAR                           | circle                      | CircleAttention
A162 Multi-query attention           | gqa rope                    | RotaryAttention
A163 Sparse Transformers             | strided fixed               |
A168 TaylorShift                     | taylor_shift taylor2        | TaylorShiftAttention
A169 ConvBERT                        | dynamic_convolution padding | MixedAttention
A170 Dual attention transformer      | relational                  |
A174 SHViT                           | full                        | SingleHeadAttention
A175 MW-MAE                          | window_per_head             | HeadWindowAttention
A176 SwiftFormer                     | additive_global             |
A178 StyleDiffusion                  | cross                       |
A180 CoCA                            | coca                        | CollinearAttention
A182 U-DiT                           | rope_2d                     | CosetAttention
B6   Delta rule                      | delta gated_delta           | DeltaNetAttention
B13  Mamba                           | mamba                       |
B23  Aaren                           | prefix_query                | AarenAttention
"""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One entry of the catalogue, and where it is."""

    number: str
    name: str
    specs: tuple[str, ...]
    layers: tuple[str, ...]


def mechanisms() -> list[Mechanism]:
    """All of them, in the catalogue's order. Raises ValueError for a spec or layer that does not exist."""
    known = {s.name for s in einfuse.list_specs()}
    out = []
    for line in TEXT.strip().splitlines():
        title, specs, classes = (part.strip() for part in line.split("|"))
        number, _, name = title.partition(" ")
        found = Mechanism(number, name.strip(), tuple(specs.split()), tuple(classes.split()))
        missing = [s for s in found.specs if s not in known] + [c for c in found.layers if not hasattr(layers, c)]
        if missing or not found.specs:
            raise ValueError(f"{number} {found.name}: there is no {', '.join(missing) or 'spec'}")
        out.append(found)
    return out


def section() -> str:
    """The mechanisms as a part of library/README.md."""
    every = mechanisms()
    rows = [f"| {m.number} | {m.name} | {', '.join(m.specs)} | {', '.join(m.layers) or 'none needed'} |\n" for m in every]
    count = f"{len(every)} work; the numbers are the catalogue's. `python -m einfuse.library.mechanisms` counts them."
    head = f"## Mechanisms of the catalogue\n\n{count}\n\n"
    return head + "| number | mechanism | specs | layers |\n|---|---|---|---|\n" + "".join(rows)


def main() -> int:
    """Prints them with what verification found; returns 1 where a spec of one is not verified as it stands."""
    paths, record = verified.texts(), verified.read()
    late = 0
    for m in mechanisms():
        found = {s: verified.status(paths[s], record.get(s)) for s in m.specs}
        late += not all(verified.good(s) for s in found.values())
        print(f"{m.number:5} {m.name:28} {', '.join(f'{s} ({x})' for s, x in found.items())}  {' '.join(m.layers)}")
    print(f"{len(mechanisms())} mechanisms, {late} of them with a spec that is not verified as it stands")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
