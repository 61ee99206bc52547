"""Imported for what it does: torch knows the operators of einfuse afterwards, so that graphs captured elsewhere can be loaded.

import einfuse.operators
program = torch.export.load("attention.pt2")
"""

from einfuse.runtime import ops as ops
