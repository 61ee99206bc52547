"""Scans as Triton: `emit` prints a module, which `codegen.triton` loads."""

from einfuse.codegen.scan.triton.emit import emit as emit
