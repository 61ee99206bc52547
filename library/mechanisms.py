"""Which mechanisms of the catalogue work, and what holds them. `python -m einfuse.library.mechanisms` checks and counts them.

A line is the catalogue's number, a name, the specs, and the layers around them where the mechanism is more than its attention. `-` for
specs: convolutions, transforms and gates, in which no token meets another through a score; the layer is torch's alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import einfuse
from einfuse.library import layers, verified

TEXT = """
A1   TransRef                        | cross                       | CrossAttention
A2   FOD                             | prior_map                   |
A3   Transformer in Transformer      | full                        | InnerOuterAttention
A4   D-Former                        | volume_window               | VolumeAttention
A5   DRSformer                       | channel_topk                | TopKChannelAttention
A6   DuoFormer                       | full                        | ScalePatchAttention
A7   BUS (a reading)             | cross                       | TextGuidedSummary
A8   CrossViT                        | full                        | CrossBranchAttention
A9   AxFormer                    | kept_weights                |
A10  Patch perturbations             | tempered                    |
A11  DRCT                            | swin_window                 | SwinAttention
A12  URPE                            | urpe                        | UrpeAttention
A13  CSWin                           | cross_shaped                | CrossShapedAttention
A14  ResFormer (resolutions)         | full                        | ConvolvedValueAttention
A15  Graph transformer               | graph_transformer           | EdgeGraphAttention
A16  Shift equivariance              | full                        | ShiftEquivariantAttention
A17  CrossFormer                     | swin_window                 | CrossFormerAttention
A18  HAT                             | overlapping_window          | OverlappingAttention
A19  MASFormer                       | causal sliding_window       | MixedSpanAttention
A20  Combiner                        | combiner                    |
A21  iTransformer                    | full                        | VariateAttention
A22  T2T-ViT                         | full performer_both         | TokensToToken
A23  FreeEdit                        | reference_branch            | ReferenceBranchAttention
A24  ReferFormer                     | deformable                  | DeformableAttention
A25  CRAFT                           | rectangles channel_cosine   | RectangleAttention CosineChannelAttention
A26  ComplexFormer (a reading)       | polar                       |
A27  Transformer Programs            | program_head program_count  |
A28  RMT                             | rmt                         | ManhattanAttention
A29  TokenFormer                     | pattention                  | Pattention
A30  CvT                             | full                        | ConvProjectionAttention
A31  kMaX-DeepLab                    | kmax                        |
A32  Sigmoid attention               | sigmoid                     | SigmoidAttention
A33  ESSAformer                      | spectral_tokens             |
A34  Upsampling decoder              | full                        | UpsamplingWindowAttention
A35  LRGT                            | full key_bias               | GroupedViewAttention MergingByScores
A36  SAM2Act                         | full cross                  | MemoryAttention
A37  EcoFormer                       | hashed_codes                |
A38  ShiftAddViT                     | linear_angular              |
A39  DLGSANet                        | channel_relu                | SparseChannelAttention
A40  IA-RED^2                    | padding                     | PolicyDropping
A41  Inception Transformer           | full                        | InceptionMixer
A42  BatchFormer                     | full                        | BatchAttention
A43  FIT                             | full causal graph cross     | InterleavedAttention
A44  SparseFormer                | adaptive_mixing full        | RegionSampling
A45  TiC (its convolution)       | padded_window               |
A46  FiTv2                           | rope_2d                     |
A47  DeFTAN-II                       | efficient                   |
A48  MCTF                            | sized_keys                  | MergingAttention
A49  HiLo                            | full                        | HiLoAttention
A50  Infinite prefix                 | infinite_prefix             | InfinitePrefixAttention
A51  ReLU attention                  | relu                        |
A52  Graphix-T5                      | relation                    | RelationalGraphAttention
A53  LAMA                            | low_rank_pooling            | LowRankPooling
A54  SLAB                            | relu_linear                 |
A55  AiOS                            | full deformable             | DeformableAttention
A56  Sliced recursion                | full                        | SlicedRecursiveAttention
A57  Information pathways (unbiased) | random_keys                 | RandomKeyAttention
A58  OneFormer                       | live_or_all                 | MaskedCrossAttention
A59  Power-Softmax                   | power                       | PowerSoftmaxAttention
A60  All in One                      | full                        | RollingTokenAttention
A61  MossFormer                      | gated_groups                |
A62  FMViT (a reading)           | cross                       | FrequencyMixer
A63  Attention in attention          | scale_gate                  | BranchMix
A64  Residual attention network  | -                           | ResidualMask
A65  ResNeSt                         | split_gate                  | SplitAttention
A66  GAT                             | gat                         | GraphAttention
A67  CoAtNet                         | relative_grid               | RelativeGridAttention
A68  HAN (layer attention)           | tempered                    | LayerAttention
A69  DAN                             | decoupled                   |
A70  RIN                             | interface full                  | SharedReadAttention
A71  Dual aggregation                | rectangles channel_cosine   | DualAggregation
A73  Sparsifiner                 | low_rank_mask               |
A74  TransNeXt                       | aggregated                  |
A75  CAMixerSR                   | hard_windows                | ContentAwareMixer
A76  Coarse-to-fine attention        | coarse_to_fine              |
A77  Routing Transformer         | clusters                    |
A78  Triplet attention           | -                           | TripletAttention
A79  Input combination (flat)        | two_sources                 |
A80  ULSAM                           | map_gate                    | SubspaceAttention
A81  Sliding-window convolutions     | neighborhood                |
A82  Pixel attention                 | place_gate                  | PixelAttention
A83  Decoupled head sizes            | full                        |
A84  Medusa                          | scale_gate                  | ScaleAttention
A85  Astroformer                     | relative_grid               | RelativeGridAttention
A86  Select and pack             | document                    | SelectAndPack
A87  FormNet                         | rich                        |
A88  ParaFormer                      | self_and_cross              | ParallelAttention
A89  Pay better attention            | full                        | EfficientAttention SuperAttention
A90  RCAN                            | squeeze                     |
A91  Stack attention                 | stack                       | StackAttention
A92  Cross-lingual positions     | full                        | ReorderedPositions
A93  BiFormer                        | routed_regions              | RoutedRegionAttention
A94  Selfie                          | full                        | SummaryTokenPooling
A95  FasterViT                       | carriers head_bias          | CarrierTokenAttention
A96  LookHere                        | lookhere                    | LookHereAttention
A97  ResFormer, SVFormer             | causal                      | ValueResidualAttention
A98  Visual attention sink           | sink_redistribution         |
A99  Skim-Attention                  | shared_map                  | SkimAttention
A100 MoA (spans)                     | head_spans                  | HeadSpanAttention
A101 HaloNet                         | halo halo_relative          | HaloAttention
A102 Squeeze-and-Excitation          | squeeze                     |
A103 SRFormer                        | permuted_window             | PermutedWindowAttention
A104 Cog                             | cog                         | CogAttention
A105 Mixture of attention heads      | mixture_of_heads            | MixtureOfAttentionHeads
A106 PEPSI++                         | contextual                  |
A107 EViT                            | one_row                     | TokenPruningAttention
A108 BAM (balanced)                  | channel_gate                | ConvolutionalBlockAttention
A109 SinkLoRA, LongLoRA              | shifted_groups              | ShiftedGroupAttention
A110 MEDUSA (a reading)          | -                           | PyramidGate
A111 FlexAttention (vision-language) | two_sources             | HighResolutionReading
A112 NesT                            | full                        | NestedAttention
A113 Show, attend and read           | additive                    | NeighbourAdditiveAttention
A114 CBAM                            | channel_gate                | ConvolutionalBlockAttention
A115 MoH                             | mixture_of_heads full       | MixtureOfHeadAttention
A116 Audio super-resolution          | full                        | PooledTokenGate
A117 cosFormer                       | cosine_weighted             |
A118 Attention Swin U-Net        | full propagated_weights     | CrossContextSkip PropagatedAttention
A119 UFC                             | two_values                  | FeatureCostAttention
A120 MaxViT                          | grid swin_window                 | MaxViTAttention
A121 Robust token attention          | diversity                   | DiverseAttention
A122 FaViT                       | cross full                  | FactorisedWindowAttention
A123 GlyphDraw2                      | cross                       | SummedCrossAttention
A124 Inf-DiT                         | block_causal                | BlockCausalAttention
A125 Token-level masking             | token_masking               | TokenMaskingAttention
A126 MASTER                          | context_pool                | GlobalContext
A127 Token Pooling                   | sized_keys column_sums      | TokenPooling
A128 SATRN                           | full                        | AdaptivePositionAttention
A129 Shaped transformer              | shaped                      | ShapedAttention
A130 Length-scaled temperature       | length_scaled               | LengthScaledAttention
A131 MRA                         | multi_resolution            |
A132 Uniform attention               | uniform                     | UniformMixing
A133 SEMICON (its channels)      | channel_root                |
A134 SANA                            | relu_linear                 |
A135 DAS                         | -                           | DeformableGate
A136 Latent alignment (exact)        | latent_alignment            |
A137 Socialformer                | padding full                | SocialAttention
A138 ACLA                        | deformable                  | AcrossLayerAttention
A139 CrossMAE                        | cross                       |
A140 BAM (experts)                   | causal                      | MixtureOfAttentionExperts
A141 Learned aggregation             | full                        | ClassQueryPooling
A142 FAST                            | fast                        |
A143 NAT, DiNAT                      | neighborhood neighbourhood neighbourhood_2d | NeighborhoodAttention
A144 Conditioning on knowledge       | additive                    | ConditionedPooling
A145 AttnGAN's DAMSM                 | two_axes                    |
A146 Native sparse attention         | past_summaries block_summaries chosen_blocks sliding_window | NativeSparseAttention
A147 All-to-key attention        | cross nearest_region        | AllToKeyAttention
A148 Fisher information embedding    | fisher                      |
A149 Lightning Attention             | retention packed_linear     | LightningAttention
A150 ViCo                            | cross                       | OtsuCrossAttention
A151 Multi-source attention          | additive full               | MultiSourceAttention AdditiveAttention
A152 Bottleneck transformers         | halo_relative               |
A153 NAP                             | nap                         | NormalizedAttentionPooling
A154 CoaT                            | factorised                  |
A155 GATv2                           | gatv2                       | GraphAttentionV2
A156 Geometric temporal dynamics (a reading) | cross           | TwoNetworkAttention
A157 LSSAR                           | lssar                       | SoftplusAttention
A158 DaViT                           | channel                     | ChannelAttention
A159 CLEAR                           | circle                      | CircleAttention
A160 FastV                           | one_row                     | TokenPruningAttention
A161 Sparse VideoGen                 | video_heads                 | VideoHeadsAttention
A162 Multi-query attention           | gqa rope                    | RotaryAttention
A163 Sparse Transformers             | strided fixed               |
A164 Length-induced collapse         | tempered                    |
A165 SkipViT                     | one_row                     | SkippingTokens
A166 Token mergence (a reading)  | one_row                     | ImportanceMerging
A167 Recurrent nets with attention   | additive                    | AdditiveAttention
A168 TaylorShift                     | taylor_shift taylor2        | TaylorShiftAttention
A169 ConvBERT                        | dynamic_convolution padding | MixedAttention
A170 Dual attention transformer      | relational                  |
A171 AdaM                            | cross neighborhood          | LongShortAttention
A172 PartialFormer (its scores)      | residual_scores             |
A173 HiDiffusion                     | full                        | JitteredWindowAttention
A174 SHViT                           | full                        | SingleHeadAttention
A175 MW-MAE                          | window_per_head             | HeadWindowAttention
A176 SwiftFormer                     | additive_global             |
A177 Inequality of heads (at random) | head_dropout                | HeadDropoutAttention
A178 StyleDiffusion                  | cross                       |
A179 HelloMeme                       | cross                       | KnittingAttention
A180 CoCA                            | coca                        | CollinearAttention
A181 HeadRouter                  | full                        | RoutedHeads
A182 U-DiT                           | rope_2d                     | CosetAttention
A183 CAN                             | additive_map                | CoverageAttention
B1   TSMixer                     | -                           | PatchMixer
B2   ATLAS                       | atlas                       |
B3   MetaFormer (PoolFormer)         | pooling                     |
B4   LMUFormer (its memory)          | lmu                         |
B5   Scattering transform        | -                           | ScatteringMixer
B6   Delta rule                      | delta gated_delta           | DeltaNetAttention
B7   ConvFormer (its mixer)      | -                           | ConvolutionalModulation
B8   QMambaBSR (a reading)       | mamba channel_gate          | QueryStateSpace
B9   Paraformer (its firing)     | integrate_and_fire          |
B10  MetaFormer baselines            | constant_map                |
B11  Activator                   | -                           | GatedUnits
B12  SpectFormer                 | full                        | SpectralBlock
B13  Mamba                           | mamba                       |
B14  Extractors (a reading)          | position_sum                |
B15  Multi-dimensional Hyena     | -                           | LongConvolution
B16  SPANet                      | -                           | SpectralPooling
B17  Pervasive attention         | context_pool                | PervasiveAttention
B18  LaMamba                     | mamba swin_window           | LaMambaBlock SerpentineScan
B19  Focal modulation            | -                           | FocalModulation
B20  MLP-Mixer                       | token_mlp                   |
B21  NiNformer                   | token_mlp                   | GatedTokenMixer
B22  MambaOut                    | -                           | GatedConvolution
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
    return parsed(TEXT)


def parsed(text: str) -> list[Mechanism]:
    """A mechanism a line. Raises ValueError for a spec or layer that does not exist."""
    known = {s.name for s in einfuse.list_specs()}
    out = []
    for line in text.strip().splitlines():
        title, specs, classes = (part.strip() for part in line.split("|"))
        number, _, name = title.partition(" ")
        found = Mechanism(number, name.strip(), tuple(specs.removeprefix("-").split()), tuple(classes.split()))
        missing = [s for s in found.specs if s not in known] + [c for c in found.layers if not hasattr(layers, c)]
        if missing or not (found.specs or found.layers):
            raise ValueError(f"{number} {found.name}: there is no {', '.join(missing) or 'spec'}")
        out.append(found)
    return out


def section() -> str:
    """The mechanisms as a part of library/README.md."""
    every = mechanisms()
    rows = [
        f"| {m.number} | {m.name} | {', '.join(m.specs) or 'torch alone'} | {', '.join(m.layers) or 'none needed'} |\n"
        for m in every
    ]
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
