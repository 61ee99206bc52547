"""The cascade IR: nodes, text, verifier, interpreter, analyses and passes. Knows nothing of grammar sugar or devices.

The interpreter works on tensors and is imported when it is asked for: nothing else here needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from einfuse.ir.errors import DoesNotFitError as DoesNotFitError
from einfuse.ir.errors import EinfuseError as EinfuseError
from einfuse.ir.errors import SpecError as SpecError
from einfuse.ir.errors import TooLargeError as TooLargeError
from einfuse.ir.expr import call as call
from einfuse.ir.expr import conjunction as conjunction
from einfuse.ir.expr import const as const
from einfuse.ir.expr import index as index
from einfuse.ir.expr import load as load
from einfuse.ir.expr import size as size
from einfuse.ir.functions import COPY as COPY
from einfuse.ir.functions import FUNCTIONS as FUNCTIONS
from einfuse.ir.nodes import RANK_KINDS as RANK_KINDS
from einfuse.ir.nodes import Blocked as Blocked
from einfuse.ir.nodes import Cascade as Cascade
from einfuse.ir.nodes import DType as DType
from einfuse.ir.nodes import Einsum as Einsum
from einfuse.ir.nodes import Expr as Expr
from einfuse.ir.nodes import Flat as Flat
from einfuse.ir.nodes import Fold as Fold
from einfuse.ir.nodes import Range as Range
from einfuse.ir.nodes import Rank as Rank
from einfuse.ir.nodes import RankKind as RankKind
from einfuse.ir.nodes import Scalar as Scalar
from einfuse.ir.nodes import Scan as Scan
from einfuse.ir.nodes import State as State
from einfuse.ir.nodes import Statement as Statement
from einfuse.ir.nodes import Tensor as Tensor
from einfuse.ir.reducers import REDUCERS as REDUCERS
from einfuse.ir.reducers import Reducer as Reducer
from einfuse.ir.scalars import MAX_OPERATIONS as MAX_OPERATIONS
from einfuse.ir.source import MAX_TEXT as MAX_TEXT
from einfuse.ir.source import read_spec as read_spec
from einfuse.ir.span import Span as Span

if TYPE_CHECKING:
    from einfuse.ir.interpreter import interpret as interpret
    from einfuse.ir.tiles import TileMap as TileMap
    from einfuse.ir.tiles import at_points as at_points
    from einfuse.ir.tiles import classify as classify

_LATER = {"interpret": "interpreter", "TileMap": "tiles", "at_points": "tiles", "classify": "tiles"}
"""What brings torch or numpy with it: a spec is parsed, elaborated and fused without either."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found
