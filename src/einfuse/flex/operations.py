"""All functions of torch that a trace knows: importing this module makes them known."""

from einfuse.flex import bitwise as bitwise
from einfuse.flex import casts as casts
from einfuse.flex import choices as choices
from einfuse.flex import functions as functions
from einfuse.flex import pointwise as pointwise
from einfuse.flex import vectors as vectors
from einfuse.flex.registry import OPERATIONS as OPERATIONS
