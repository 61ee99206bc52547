"""Every statement gets its whole space: its own ``where`` and the spaces of the statements it reads.

    s[i, j] = qk[i, j] / 8 where j <= i            s[i, j] = qk[i, j] / 8 where j <= i
    m[i] = max[j] s[i, j]                 ->       m[i] = max[j] s[i, j] where j <= i
    p[i, j] = exp(s[i, j] - m[i])                  p[i, j] = exp(s[i, j] - m[i]) where j <= i

The rules are in `ir.spaces`, which the interpreter and the verifier read as well.
"""

from __future__ import annotations

from einfuse.ir.nodes import AnyCascade
from einfuse.ir.spaces import inferred


def run(cascade: AnyCascade) -> AnyCascade:
    """Idempotent. Leaves folds as they are."""
    return inferred(cascade)
