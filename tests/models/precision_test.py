"""Half precision: near the numbers of single precision, learns as well."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import keys, models, training, types
from tests import toy

KEY = keys.root(0)
SPEC = types.DataSpec(
  name='toy',
  image_shape=(16, 16, 3),
  num_classes=4,
  mean=(0.4, 0.5, 0.6),
  std=(0.2, 0.25, 0.3),
)
IMAGES = jnp.asarray(
  np.random.default_rng(0).random((16, 16, 16, 3)), 'float32'
)


@functools.cache
def passes(dtype):
  """(logits, state) of a pass in training mode."""
  net = models.make('preactresnet18', SPEC, width=8, dtype=dtype)
  state = net.init(KEY)
  return jax.jit(functools.partial(net.apply, train=True))(state, IMAGES)


class PrecisionTest(parameterized.TestCase):
  def test_is_near_single_precision_and_not_equal(self):
    (half, _), (single, _) = passes('bfloat16'), passes('float32')
    scale = float(jnp.std(single))
    gap = np.abs(half - single)
    self.assertLess(gap.max(), 0.15 * scale)
    self.assertGreater(gap.max(), 1e-4 * scale)

  def test_statistics_are_kept_in_single_precision(self):
    (_, half), (_, single) = passes('bfloat16'), passes('float32')
    first = lambda state: state.batch_stats['stage1_0']['bn1']
    for name, want in first(single).items():
      got = first(half)[name]
      self.assertEqual(got.dtype, jnp.float32)
      np.testing.assert_allclose(got, want, rtol=0.02, atol=1e-3)
      # Not a number of eight bits, as it would be after a cast.
      self.assertFalse(np.array_equal(got, got.astype(jnp.bfloat16)))

  def test_learns_and_is_backdoored_as_in_single_precision(self):
    net = models.in_dtype(toy.classifier(), 'bfloat16')
    attack, train = toy.attack('badnets'), toy.dataset().train
    phases = training.attack_phases(
      net,
      attack,
      training.optimizer(toy.RECIPE),
      augment=toy.augment(),
      name='implant',
      num_epochs=toy.RECIPE.epochs,
      batch_size=toy.RECIPE.batch_size,
      reads='train',
    )
    state = attack.init(keys.stream(KEY, 'attack'), *train)
    start = types.Carry(model=net.init(KEY), extra=state)
    carry, _ = training.run_phases(
      phases, start, {'train': toy.train_feed()}, KEY, augment=toy.augment()
    )
    # Read in single precision: the weights are whole.
    victim = toy.Victims('badnets', carry.extra, carry.model)
    rates = toy.evaluate(carry.model, victim)
    self.assertGreaterEqual(rates['c_acc'], 0.95)
    self.assertGreaterEqual(rates['asr'], 0.95)

  def test_single_precision_is_the_network_itself(self):
    self.assertIs(
      models.in_dtype(toy.classifier(), 'float32'), toy.classifier()
    )

  def test_other_types(self):
    with self.assertRaisesRegex(ValueError, "dtype='float16'.*bfloat16"):
      models.make('tiny', SPEC, dtype='float16')
