"""Three white-box steps on a real network, against torch's numbers.

The fixture holds float64 runs of the official code on 16 triggered images and
a fine-tuned model. All runs in float64, where the two agree to rounding: in
float32 an activation of the third step may fall on the other side of a ReLU's
kink, depending on the order of sums in a convolution. Errors are relative to
the largest entry of each array.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models, perturb, types
from bdjax.reactivation.white_box import (
  WhiteBoxHParams,
  WhiteBoxState,
  reactivation_loss,
  runner_up,
  white_box,
)
from tests.reference import torch_layout

REFERENCE = pathlib.Path(__file__).parents[1] / 'reference'
TARGET = jnp.zeros(16, jnp.int32)
EPS = {'linf': 0.05, 'l2': 3.0}


@functools.cache
def fixture():
  with np.load(REFERENCE / 'wba.npz') as arrays:
    return dict(arrays)


@functools.cache
def network():
  spec = types.DataSpec(
    name='cifar10',
    image_shape=(32, 32, 3),
    num_classes=10,
    mean=tuple(fixture()['mean'].tolist()),
    std=tuple(fixture()['std'].tolist()),
  )
  classifier = models.make('preactresnet18', spec, width=8)
  path = REFERENCE / 'student_w8_state.npz'
  state = torch_layout.load_state(path, classifier)
  return classifier, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state)


def images():
  return jnp.asarray(fixture()['images_u8'], jnp.float64) / 255


@functools.cache
def losses_and_gradient():
  """delta -> (gradient, (logits, the two terms))."""
  classifier, state = network()

  def loss_fn(delta):
    x = perturb.clip_unit(images() + delta[None])
    logits, _ = classifier.apply(state, x)
    terms = [
      jnp.mean(reactivation_loss(logits, TARGET, *weights))
      for weights in ((1.0, 0.0), (0.0, 1.0))
    ]
    return sum(terms), (logits, terms)

  return jax.jit(jax.grad(loss_fn, has_aux=True))


@functools.cache
def step(norm):
  """One descent step of the phase itself."""
  classifier, state = network()
  hp = WhiteBoxHParams(norm=norm, eps=EPS[norm], inner_steps=1, batch_size=16)
  phase = white_box(classifier, hp).phases[0]
  batch = {'image': images(), 'label': TARGET, 'mask': jnp.ones(16, bool)}
  zero = jnp.zeros((), jnp.int32)
  clock = types.Clock(jax.random.key(0), zero, zero, 1, 1)

  @jax.jit
  def run(delta):
    after, metrics = phase.step(WhiteBoxState(state, delta), batch, clock)
    return after.delta, metrics

  return run


class WhiteBoxGoldenTest(parameterized.TestCase):
  def close(self, value, golden, tolerance=1e-10):
    value, golden = np.float64(value), np.float64(golden)
    error = np.max(np.abs(value - golden)) / np.max(np.abs(golden))
    self.assertLess(error, tolerance)

  @parameterized.product(norm=tuple(EPS), k=(1, 2, 3))
  def test_losses_and_gradient(self, norm, k):
    golden = {
      name.removeprefix(f'{norm}/'): value for name, value in fixture().items()
    }
    with jax.enable_x64(True):
      delta = jnp.asarray(golden[f'delta_{k - 1}'])
      gradient, (logits, terms) = losses_and_gradient()(delta)
      rival = runner_up(logits, TARGET)
    self.assertEqual(gradient.dtype, np.float64)
    self.close(logits, golden[f'logits_{k}'])
    self.close(terms[0], golden[f'loss_ce_{k}'])
    self.close(terms[1], golden[f'loss_bce2_{k}'])
    self.close(gradient, golden[f'grad_{k}'])
    np.testing.assert_array_equal(rival, golden[f'runner_up_{k}'])

  @parameterized.parameters(*EPS)
  def test_three_steps_of_the_phase(self, norm):
    golden = fixture()
    with jax.enable_x64(True):
      delta = jnp.asarray(golden[f'{norm}/delta_0'])
      for k in (1, 2, 3):
        delta, metrics = step(norm)(delta)
        self.close(delta, golden[f'{norm}/delta_{k}'])
        self.close(metrics['loss'], golden[f'{norm}/loss_{k}'])
