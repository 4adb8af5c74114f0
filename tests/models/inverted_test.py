from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from flax import linen as nn

from bdjax.models import inverted, taps
from tests.models import nets

WIDE = inverted.Block('a', 4, 6, 5, size=5, stride=2, squeezed=2)
PLAIN = inverted.Block('b', 4, 4, 4, size=3, stride=1, squeezed=0)


class Net(nn.Module):
  """One block by itself."""

  facts: inverted.Block
  tap: taps.Taps
  activation: Callable = nn.hard_swish
  rate: float = 0.0

  @nn.compact
  def __call__(self, x, train):
    gates = (nn.relu, nn.hard_sigmoid)
    run = inverted.Pass(self.tap, train, {'eps': 1e-3, 'decay': 0.99}, gates)
    return run.block(self.facts, x, self.activation, self.rate)


def made(facts, **options):
  """(net, variables none of which is 0 or 1, images)."""
  net = Net(facts, taps.Taps(), **options)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(3, 7, 6, 4)), jnp.float32)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, False))
  variables = jax.tree.map(
    lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape), leaf.dtype),
    shapes,
  )
  return net, variables, x


def hard_sigmoid(x):
  return np.clip(x + 3, 0, 6) / 6


def hard_swish(x):
  return x * hard_sigmoid(x)


class InvertedTest(parameterized.TestCase):
  def test_places(self):
    self.assertEqual(
      list(inverted.conv_places(WIDE)),
      [('a.block.0', 6), ('a.block.1', 6), ('a.block.3', 5)],
    )
    self.assertEqual(WIDE.squeeze, 'a.block.2')
    self.assertEqual(
      list(inverted.conv_places(PLAIN)), [('b.block.0', 4), ('b.block.1', 4)]
    )
    self.assertEqual(PLAIN._replace(squeezed=2).narrow, 'b.block.2')
    group = inverted.prune_group('a.block.1', 6)
    self.assertEqual(group.norm, ('a_block_1_1',))
    self.assertEqual(group.conv, ('a_block_1_0',))
    self.assertEqual((group.channels, group.tap), (6, 'a.block.1.1'))

  def test_a_wide_block_written_out(self):
    net, variables, x = made(WIDE)
    p, s = variables['params'], variables['batch_stats']

    def conv_norm(x, name, stride=1, pad=0, groups=1):
      name = f'a_block_{name}_'
      x = nets.conv(x, p[name + '0']['kernel'], stride, pad, groups)
      return nets.batch_norm(x, p[name + '1'], s[name + '1'], eps=1e-3)

    def fc(x, name):
      part = p[f'a_block_2_{name}']
      return x @ np.asarray(part['kernel'])[0, 0] + np.asarray(part['bias'])

    out = hard_swish(conv_norm(np.asarray(x), 0))
    out = hard_swish(conv_norm(out, 1, 2, 2, 6))
    self.assertEqual(out.shape, (3, 4, 3, 6))
    gate = hard_sigmoid(fc(np.maximum(fc(out.mean((1, 2)), 'fc1'), 0), 'fc2'))
    out = conv_norm(out * gate[:, None, None], 3)
    run = jax.jit(lambda variables, x: net.apply(variables, x, False))
    nets.assert_close(run(variables, x), out)

  def test_the_input_is_added_where_shapes_allow(self):
    for facts, added in (
      (PLAIN, True),
      (PLAIN._replace(outputs=5), False),
      (PLAIN._replace(stride=2), False),
    ):
      self.assertEqual(facts.is_residual, added)
    _, variables, x = made(PLAIN)

    @jax.jit
    def run(variables, x):
      tap = taps.Taps()
      out = Net(PLAIN, tap).apply(variables, x, False)
      return out, tap.seen['b.block.1.1']

    out, branch = run(variables, x)
    np.testing.assert_allclose(out, x + branch, rtol=1e-6)

  def test_branches_are_dropped_in_training_only(self):
    net, variables, x = made(PLAIN, rate=0.5)
    x = jnp.concatenate([x] * 10)
    out, _ = net.apply(
      variables,
      x,
      True,
      rngs={'dropout': jax.random.key(0)},
      mutable=['batch_stats'],
    )
    same = (np.asarray(out) == np.asarray(x)).all((1, 2, 3))
    self.assertBetween(same.mean(), 0.2, 0.8)
    out = net.apply(variables, x, False)
    self.assertFalse((np.asarray(out) == np.asarray(x)).all((1, 2, 3)).any())
