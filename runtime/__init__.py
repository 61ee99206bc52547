"""From cascades to results: compile, cache, launch, autograd, dispatch by device, verification, benchmarks.

It gives out nothing by itself: `specs`, `cache` and `derived` run without torch, which the other modules import.
"""
