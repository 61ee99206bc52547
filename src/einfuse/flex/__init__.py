"""FlexAttention's interface, compiled by einfuse: replace ``torch.nn.attention.flex_attention`` by ``einfuse.flex`` in the import.

Masks are formulas (`create_block_mask` takes no memory and no time), every captured number is a run-time argument, every captured
tensor gets its gradient, and the backward runs on CPUs as well. See docs/flex.md.
"""

from einfuse.flex.attention import AuxOutput as AuxOutput
from einfuse.flex.attention import AuxRequest as AuxRequest
from einfuse.flex.attention import flex_attention as flex_attention
from einfuse.flex.block_mask import BlockMask as BlockMask
from einfuse.flex.block_mask import create_block_mask as create_block_mask
from einfuse.flex.masks import and_masks as and_masks
from einfuse.flex.masks import noop_mask as noop_mask
from einfuse.flex.masks import or_masks as or_masks
