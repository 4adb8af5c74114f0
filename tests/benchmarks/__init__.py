"""Benchmarks: programs, not tests; README.md tells how to run them."""

from bdjax import xla

xla.tune_cpu()  # as launchers do, before anything is computed
