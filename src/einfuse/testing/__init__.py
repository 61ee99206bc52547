"""Hypothesis strategies for specs: whole attentions as `.attn` text, to property-test a compiler pass or your own variant.

    from hypothesis import given
    from einfuse.testing import specs

    @given(specs())
    def test_my_pass(text): ...

`specs()` draws whole attentions, `programs()` such of statements that read each other, `selections()` such that choose what they read,
`masks(depth)` conditions over b, h, i, j, `normalisers()` definitions of `norm[j](s)`: docs/testing.md (examples there). A drawn text always
elaborates; it shrinks towards plain attention. Needs the package `hypothesis`.
"""

from einfuse.testing.programs import programs as programs
from einfuse.testing.specs import masks as masks
from einfuse.testing.specs import normalisers as normalisers
from einfuse.testing.specs import selections as selections
from einfuse.testing.specs import specs as specs
