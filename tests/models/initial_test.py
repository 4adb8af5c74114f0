import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.models import initial

SHAPES = {
  'conv': {'kernel': (3, 3, 20, 40), 'bias': (40,)},
  'depthwise': {'kernel': (5, 5, 1, 300)},
  'head': {'kernel': (100, 50), 'bias': (50,)},
  'norm': {'scale': (4,), 'bias': (4,)},
}
ABSTRACT = jax.tree.map(
  lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
  SHAPES,
  is_leaf=lambda x: isinstance(x, tuple),
)


def draw(rule):
  return initial.draw(jax.random.key(0), ABSTRACT, rule)


class InitialTest(parameterized.TestCase):
  @parameterized.parameters(
    ('conv', initial.he_in, (2 / 180) ** 0.5),
    ('conv', initial.he_out, (2 / 360) ** 0.5),
    ('depthwise', initial.he_in, (2 / 25) ** 0.5),
    ('depthwise', initial.he_out, (2 / 7500) ** 0.5),
    ('conv', initial.normal(0.3), 0.3),
    ('conv', initial.uniform_in, (1 / 180 / 3) ** 0.5),
  )
  def test_deviation_of_convolutions(self, name, law, expected):
    kernel = draw(initial.rule(law, initial.zero))[name]['kernel']
    np.testing.assert_allclose(kernel.std(), expected, rtol=0.03)
    np.testing.assert_allclose(kernel.mean(), 0, atol=0.03 * expected)

  @parameterized.parameters(
    (initial.uniform_in, 0.1), (initial.uniform_out, 50**-0.5)
  )
  def test_bounds_of_linear_layers(self, law, bound):
    kernel = draw(initial.rule(initial.he_in, law))['head']['kernel']
    self.assertLessEqual(float(jnp.abs(kernel).max()), bound)
    self.assertGreater(float(jnp.abs(kernel).max()), 0.99 * bound)

  def test_biases_follow_the_kernels_of_their_layers(self):
    params = draw(initial.rule(initial.zero, initial.zero, initial.uniform_in))
    bias = params['head']['bias']
    self.assertLessEqual(float(jnp.abs(bias).max()), 0.1)
    self.assertGreater(float(jnp.abs(bias).max()), 0.08)
    np.testing.assert_array_equal(params['conv']['kernel'], 0)

  def test_biases_are_zero_unless_asked_for_and_norms_are_the_identity(self):
    params = draw(initial.rule(initial.he_in, initial.uniform_in))
    for name, leaf, value in (
      ('head', 'bias', 0),
      ('conv', 'bias', 0),
      ('norm', 'scale', 1),
      ('norm', 'bias', 0),
    ):
      np.testing.assert_array_equal(params[name][leaf], value)

  def test_leaves_of_two_laws_share_no_numbers(self):
    params = draw(initial.rule(initial.he_in, initial.uniform_in))
    conv = np.asarray(params['conv']['kernel']).ravel()
    depthwise = np.asarray(params['depthwise']['kernel']).ravel()
    head = np.asarray(params['head']['kernel']).ravel()
    for a, b in ((conv, depthwise), (conv, head)):
      size = min(len(a), len(b))
      self.assertLess(abs(np.corrcoef(a[:size], b[:size])[0, 1]), 0.1)

  def test_one_law_takes_the_key_as_it_is(self):
    # Seeds of networks with a single law keep their weights.
    params = draw(initial.rule(initial.he_in, initial.zero))
    numbers = jax.random.normal(jax.random.key(0), (7200 + 7500,))
    np.testing.assert_allclose(
      params['conv']['kernel'].ravel(),
      numbers[:7200] * (2 / 180) ** 0.5,
      rtol=1e-6,
    )
