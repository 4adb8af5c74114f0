"""Three white-box steps on a real network, against torch's numbers.

The fixture holds float64 runs of the official code on 16 triggered images and
a fine-tuned model. All runs in float64, where the two agree to rounding: in
float32 an activation of the third step may fall on the other side of a ReLU's
kink, depending on the order of sums in a convolution. Errors are relative to
the largest entry of each array.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb, training, types
from bdjax.reactivation.white_box import (
  WhiteBoxHParams,
  WhiteBoxState,
  reactivation_loss,
  white_box,
)
from tests.reference import golden

TARGET = jnp.zeros(16, jnp.int32)
EPS = {'linf': 0.05, 'l2': 3.0}


def network():
  return golden.network(), golden.state('student_w8_state', jnp.float64)


@functools.cache
def losses_and_gradient():
  """delta -> (gradient, (logits, the two terms))."""
  classifier, state = network()

  def loss_fn(delta):
    x = perturb.clip_unit(golden.images('wba') + delta[None])
    logits, _ = classifier.apply(state, x)
    terms = [
      jnp.mean(reactivation_loss(logits, TARGET, *weights))
      for weights in ((1.0, 0.0), (0.0, 1.0))
    ]
    return sum(terms), (logits, terms)

  return golden.jit(jax.grad(loss_fn, has_aux=True))


@functools.cache
def step(norm):
  """One descent step of the phase itself."""
  classifier, state = network()
  hp = WhiteBoxHParams(norm=norm, eps=EPS[norm], inner_steps=1, batch_size=16)
  phase = white_box(classifier, hp).phases[0]
  batch = {
    'image': golden.images('wba'),
    'label': TARGET,
    'mask': jnp.ones(16, bool),
  }
  zero = jnp.zeros((), jnp.int32)
  clock = types.Clock(jax.random.key(0), zero, zero, 1, 1)

  @golden.jit
  def run(delta):
    after, metrics = phase.step(WhiteBoxState(state, delta), batch, clock)
    return after.delta, metrics

  return run


class WhiteBoxGoldenTest(parameterized.TestCase):
  def close(self, value, want):
    golden.assert_close(value, want, 1e-10)

  @parameterized.product(norm=tuple(EPS), k=(1, 2, 3))
  def test_losses_and_gradient(self, norm, k):
    arrays = golden.arrays('wba', f'{norm}/')
    with jax.enable_x64(True):
      delta = jnp.asarray(arrays[f'delta_{k - 1}'])
      gradient, (logits, terms) = losses_and_gradient()(delta)
      rival = training.runner_up(logits, TARGET)
    self.assertEqual(gradient.dtype, np.float64)
    self.close(logits, arrays[f'logits_{k}'])
    self.close(terms[0], arrays[f'loss_ce_{k}'])
    self.close(terms[1], arrays[f'loss_bce2_{k}'])
    self.close(gradient, arrays[f'grad_{k}'])
    np.testing.assert_array_equal(rival, arrays[f'runner_up_{k}'])

  @parameterized.parameters(*EPS)
  def test_three_steps_of_the_phase(self, norm):
    arrays = golden.arrays('wba', f'{norm}/')
    with jax.enable_x64(True):
      delta = jnp.asarray(arrays['delta_0'])
      for k in (1, 2, 3):
        delta, metrics = step(norm)(delta)
        self.close(delta, arrays[f'delta_{k}'])
        self.close(metrics['loss'], arrays[f'loss_{k}'])
