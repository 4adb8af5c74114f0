"""How many models at a time suit a kind of device: a table of measurements.

`python -m tests.benchmarks.chunks` measures the device at hand and writes its
line of chunks.json. A kind that was never measured takes what its memory
allows.
"""

import functools
import json
import pathlib
from typing import Any

import jax

TABLE = pathlib.Path(__file__).with_suffix('.json')


@functools.cache
def table() -> dict[str, Any]:
  """The table.

  Returns:
    {kind of device: {'chunk': models at a time, or None for as many as fit,
    'measured': {work: {chunk: seconds}}, 'versions': what it ran on}}.
  """
  return json.loads(TABLE.read_text())


def usual(device: jax.Device) -> int | None:
  """The models at a time that were measured to be fastest.

  Args:
    device: a device.

  Returns:
    The number; None where its memory is to decide.
  """
  return table().get(device.device_kind, {}).get('chunk')
