"""Blocked scans as kernels: a plan of their own (a sequential loop with matrix states), printed as torch, C++ or Triton."""

from einfuse.codegen.plan.scan import ScanPlan as ScanPlan
from einfuse.codegen.scan.lower import lower as lower
from einfuse.codegen.scan.piece import Piece as Piece
