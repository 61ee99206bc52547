"""Blocked scans as kernels: a plan of their own (a sequential loop with matrix states), printed as torch, C++ or Triton."""

from einfuse.codegen.scan.backends import Piece as Piece
from einfuse.codegen.scan.backends import build as build
from einfuse.codegen.scan.backends import pieces as pieces
from einfuse.codegen.scan.lower import lower as lower
from einfuse.codegen.scan.plan import ScanPlan as ScanPlan
