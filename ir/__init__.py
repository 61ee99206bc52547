"""The cascade IR: nodes, text, verifier, interpreter, analyses and passes. Knows nothing of grammar sugar or devices."""

from einfuse.ir.errors import EinfuseError as EinfuseError
from einfuse.ir.errors import SpecError as SpecError
from einfuse.ir.expr import FUNCTIONS as FUNCTIONS
from einfuse.ir.expr import MONOIDS as MONOIDS
from einfuse.ir.expr import call as call
from einfuse.ir.expr import conjunction as conjunction
from einfuse.ir.expr import const as const
from einfuse.ir.expr import index as index
from einfuse.ir.expr import load as load
from einfuse.ir.expr import size as size
from einfuse.ir.interpret import interpret as interpret
from einfuse.ir.nodes import RANK_KINDS as RANK_KINDS
from einfuse.ir.nodes import Cascade as Cascade
from einfuse.ir.nodes import DType as DType
from einfuse.ir.nodes import Einsum as Einsum
from einfuse.ir.nodes import Expr as Expr
from einfuse.ir.nodes import Fold as Fold
from einfuse.ir.nodes import Range as Range
from einfuse.ir.nodes import Rank as Rank
from einfuse.ir.nodes import Scalar as Scalar
from einfuse.ir.nodes import Span as Span
from einfuse.ir.nodes import State as State
from einfuse.ir.nodes import Statement as Statement
from einfuse.ir.nodes import Tensor as Tensor
from einfuse.ir.tiles import TileMap as TileMap
from einfuse.ir.tiles import classify as classify
