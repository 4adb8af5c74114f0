"""Benchmarks: programs, not tests; README.md tells how to run them.

XLA reads its flags once, at the first computation, and modules here compute
when they are imported: they make keys.
"""

from bdjax import xla

xla.tune_cpu()  # as launchers do
