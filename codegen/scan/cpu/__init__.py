"""Scans as C++ for CPUs: `emit` prints a standalone file, which `codegen.cpu` builds."""

from einfuse.codegen.scan.cpu.emit import emit as emit
