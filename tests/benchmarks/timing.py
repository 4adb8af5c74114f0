"""Timing: warm-up apart, sides alternating, medians and spread."""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping

import jax

# Threads of the side before spin for a while when their work is done; on two
# cores that costs the next side a tenth.
_REST_S = 0.25


def key() -> jax.Array:
  """The key of all benchmarks; no module makes one when it is imported.

  XLA would read its flags then, and a process that only starts others would
  hold the device.
  """
  return jax.random.key(0)


def ready(value) -> None:
  """Waits for JAX's results; other values are there already."""
  jax.block_until_ready(value)


def compare(
  sides: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float]]:
  """Times several sides in turn: A B C A B C …

  Args:
    sides: name -> function of no arguments that does the work once.
    repeats: timed calls of each side, after one that is not timed.

  Returns:
    name -> first_s (with compilation), median_s, low_s, high_s.
  """
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  first = {}
  for name, fn in sides.items():
    first[name] = _once(fn)
  for _ in range(repeats):
    for name, fn in sides.items():
      gc.collect()
      time.sleep(_REST_S)
      seconds[name].append(_once(fn))
  return {
    name: {
      'first_s': first[name],
      'median_s': statistics.median(values),
      'low_s': min(values),
      'high_s': max(values),
      'repeats': repeats,
    }
    for name, values in seconds.items()
  }


def _once(fn) -> float:
  began = time.perf_counter()
  ready(fn())
  return time.perf_counter() - began


def peak_bytes() -> int:
  """Peak memory of this process: the device's where it reports one."""
  stats = jax.devices()[0].memory_stats() or {}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return int(stats.get('peak_bytes_in_use', peak))
