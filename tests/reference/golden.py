"""Stored numbers of public torch code, and the network they were made with.

All fixtures of a network hold PreAct-ResNet18 of width 8 on CIFAR-10's images;
what each of them holds beyond that, its test says.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import data, models, types
from tests.reference import torch_layout

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def arrays(name: str, prefix: str = '') -> dict[str, np.ndarray]:
  """The arrays of a file under a prefix, which their names lose; read once."""
  with np.load(FOLDER / f'{name}.npz') as file:
    names = [key for key in file if key.startswith(prefix)]
    return {key.removeprefix(prefix): file[key] for key in names}


def spec() -> types.DataSpec:
  """CIFAR-10, whose mean and std are those of all fixtures."""
  return data.spec('cifar10')


@functools.cache
def network() -> types.Classifier:
  return models.make('preactresnet18', spec(), width=8)


@functools.cache
def _stored(name: str) -> types.ModelState:
  return torch_layout.load_state(FOLDER / f'{name}.npz', network())


def state(name: str = 'preact_w8_state', dtype=jnp.float32) -> types.ModelState:
  """Weights of the network; float64 needs `jax.enable_x64`."""
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), _stored(name))


def images(name: str, key: str = 'images_u8', dtype=jnp.float64) -> jax.Array:
  """Images of a file in [0, 1]."""
  return jnp.asarray(arrays(name)[key], dtype) / 255


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles with the optimizations that short tests do without.

  No library has convolutions in float64; XLA's own code of them, unoptimized,
  takes several times as long as its compilation.
  """
  return jax.jit(fn, compiler_options={'xla_backend_optimization_level': 1})


def error(value: types.PyTree, golden: types.PyTree) -> float:
  """Largest deviation relative to the largest of the golden numbers.

  Args:
    value: an array or a tree of them.
    golden: the same shapes.
  """
  flat = [np.asarray(x, np.float64) for x in jax.tree.leaves(value)]
  want = [np.asarray(x, np.float64) for x in jax.tree.leaves(golden)]
  shapes = [x.shape for x in flat], [x.shape for x in want]
  assert shapes[0] == shapes[1], shapes
  largest = max(np.max(np.abs(x)) for x in want)
  pairs = zip(flat, want, strict=True)
  # np.max, unlike max, lets no NaN through.
  return float(np.max([np.max(np.abs(a - b)) for a, b in pairs]) / largest)


def assert_close(
  value: types.PyTree, golden: types.PyTree, tolerance: float
) -> None:
  """Fails where `error` is not below the tolerance."""
  found = error(value, golden)
  assert found < tolerance, f'{found:.3g} is not below {tolerance:g}'
