"""Timing: warm-up apart, sides alternating, medians and spread."""

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping

import jax

# Threads of the side before spin for a while when their work is done; on two
# cores that costs the next side a tenth.
_REST_S = 0.25
# A processor that has rested takes a while to be as fast as before; calls are
# repeated until together they take longer than that by far.
_LEAST_S = 0.5


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
    repeats: timings of each side, after two calls that are not timed. Of short
      calls several make one timing.

  Returns:
    name -> first_s (with compilation), median_s, low_s and high_s, seconds of
    one call; repeats, and calls, how many of them make a timing.
  """
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  first, calls = {}, {}
  for name, fn in sides.items():
    first[name] = _seconds(fn, 1)
    calls[name] = math.ceil(_LEAST_S / _seconds(fn, 1))
  for _ in range(repeats):
    for name, fn in sides.items():
      gc.collect()
      time.sleep(_REST_S)
      seconds[name].append(_seconds(fn, calls[name]))
  return {
    name: {
      'first_s': first[name],
      'median_s': statistics.median(values),
      'low_s': min(values),
      'high_s': max(values),
      'repeats': repeats,
      'calls': calls[name],
    }
    for name, values in seconds.items()
  }


def _seconds(fn, calls: int) -> float:
  """What one of several calls takes."""
  began = time.perf_counter()
  for _ in range(calls):
    ready(fn())
  return (time.perf_counter() - began) / calls


def peak_bytes() -> int:
  """Peak memory of this process: the device's where it reports one."""
  stats = jax.devices()[0].memory_stats() or {}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return int(stats.get('peak_bytes_in_use', peak))
