"""NC: its guarantees, its verdict, its stamps, its messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import defenses, perturb, sweep, training, tree
from bdjax.defenses.nc import stamp_flagged, verdict
from tests.defenses import tuning

X = jnp.asarray(tuning.IMAGES, jnp.float32) / 255


def hparams(**values):
  base = dict(epochs=2, inversion_epochs=2, batch_size=4, lr=0.05)
  return defenses.NcHParams(**base | values)


def run(model, hp):
  return tuning.run(defenses.nc(tuning.NET, hp), model)[0]


@functools.cache
def stack():
  """Three models at thresholds that flag some, none and some classes."""
  models = [tuning.NET.init(jax.random.key(i)) for i in range(3)]
  hp = hparams()
  many = tree.broadcast(jax.tree.map(jnp.float32, hp), 3)
  many = type(hp)(
    **{
      **{f: getattr(many, f) for f in many.__dataclass_fields__},
      'threshold': jnp.array([0.0, 1e6, 0.0]),
    }
  )
  member = {'model': tree.stack(models), 'hp': many}
  program = sweep.lift(lambda m: run(m['model'], m['hp']))
  return models, program(member)


def fake_extra(flagged):
  """A verdict whose class k paints all of an image in gray k/10."""
  n = len(flagged)
  gray = jnp.arange(n, dtype=jnp.float32).reshape(n, 1, 1, 1) / 10
  return {
    'mask': jnp.ones((n, 8, 8, 1)),
    'pattern': jnp.broadcast_to(gray, (n, 8, 8, 3)),
    'flagged': jnp.asarray(flagged),
  }


class NcTest(parameterized.TestCase):
  def test_without_a_flagged_class_the_model_is_bit_identical(self):
    models, carry = stack()
    after = tree.unstack(carry.model)
    chex.assert_trees_all_equal(after[1], models[1])
    self.assertFalse(bool(jnp.any(carry.extra['flagged'][1])))
    for i in (0, 2):
      same = jax.tree.map(np.array_equal, after[i], models[i])
      self.assertFalse(any(jax.tree.leaves(same)))
      self.assertTrue(bool(jnp.any(carry.extra['flagged'][i])))

  def test_masks_and_patterns_are_in_the_unit_interval(self):
    _, carry = stack()
    for name in ('mask', 'pattern'):
      self.assertBetween(float(jnp.min(carry.extra[name])), 0, 1)
      self.assertBetween(float(jnp.max(carry.extra[name])), 0, 1)

  def test_chunks_change_nothing(self):
    model = tuning.NET.init(tuning.KEY)
    hp = dict(epochs=1, inversion_epochs=1)
    all_at_once = run(model, hparams(**hp)).extra
    one_by_one = run(model, hparams(chunk=1, **hp)).extra
    for name in ('mask', 'pattern', 'norm'):
      np.testing.assert_allclose(
        all_at_once[name], one_by_one[name], rtol=1e-4, atol=1e-5
      )

  def test_detector_sees_what_the_defense_sees(self):
    model, hp = tuning.NET.init(tuning.KEY), hparams()
    detector = defenses.nc_detector(tuning.NET, hp)
    feed = training.make_feed(tuning.IMAGES, tuning.LABELS)
    fitted = detector.fit(tuning.KEY, tuning.NET, model, feed)
    chex.assert_trees_all_close(fitted, run(model, hp).extra, rtol=1e-5)
    np.testing.assert_array_equal(
      np.abs(detector.score(fitted, None)), fitted['anomaly_index']
    )

  def test_detector_suspects_small_patches_alone(self):
    fitted = {
      'norm': jnp.asarray([10.0, 1.0, 11.0, 30.0, 9.0]),
      'anomaly_index': jnp.asarray([0.0, 6.0, 0.7, 13.0, 0.7]),
    }
    scores = defenses.nc_detector(tuning.NET).score(fitted, None)
    np.testing.assert_allclose(scores, [0, 6, -0.7, -13, 0.7], rtol=1e-6)

  def test_verdict_by_hand(self):
    norms = np.array([1.0, 9.0, 10.0, 11.0, 12.0])
    lanes = tree.broadcast(
      perturb.start_lane((4, 4, 3), perturb.InversionHParams()), 5
    )
    mask = jnp.broadcast_to(
      jnp.asarray(norms / 16, jnp.float32)[:, None, None, None], (5, 4, 4, 1)
    )
    control = lanes.control._replace(best_norm=jnp.asarray(norms, jnp.float32))
    lanes = lanes._replace(best=lanes.best._replace(mask=mask), control=control)
    extra = verdict(lanes, 2.0)
    np.testing.assert_allclose(extra['norm'], norms, rtol=1e-6)
    np.testing.assert_allclose(extra['model_index'], 9 / 1.4826, rtol=1e-5)
    np.testing.assert_array_equal(extra['flagged'], [1, 0, 0, 0, 0])
    self.assertTrue(bool(jnp.all(extra['has_found'])))

  def test_stamps_only_flagged_patches_on_chosen_images(self):
    extra = fake_extra([False, True, False, True])
    images = jnp.broadcast_to(X[:1], (40, *X.shape[1:]))
    chosen = jnp.arange(40) < 30
    got, weights = stamp_flagged(extra, images, chosen, tuning.KEY)
    np.testing.assert_array_equal(got[30:], images[30:])
    np.testing.assert_array_equal(weights, [2.0] * 30 + [1.0] * 10)
    grays = np.unique(np.round(np.asarray(got[:30]), 4))
    np.testing.assert_allclose(grays, [0.1, 0.3], rtol=1e-5)

  def test_one_flagged_class_weighs_as_clean_images_do(self):
    extra = fake_extra([False, False, True, False])
    got, weights = stamp_flagged(extra, X, jnp.ones(6, bool), tuning.KEY)
    np.testing.assert_allclose(got, jnp.full_like(X, 0.2), rtol=1e-6)
    np.testing.assert_array_equal(weights, np.ones(6))

  def test_without_a_stamped_part_it_is_plain_tuning(self):
    model = tuning.NET.init(tuning.KEY)
    hp = hparams(threshold=0.0, unlearning_ratio=0.0, inversion_epochs=1)
    defense = defenses.nc(tuning.NET, hp)
    unlearn = defense._replace(phases=defense.phases[1:])
    extra = fake_extra([True, False, False, False])
    carry, _ = tuning.run(unlearn, model, extra)
    plain = defenses.ft(
      tuning.NET, defenses.FtHParams(epochs=2, batch_size=4, lr=0.05)
    )
    chex.assert_trees_all_close(
      carry.model, tuning.tune(plain, model), rtol=1e-4, atol=1e-6
    )

  def test_is_two_phases_on_the_clean_set(self):
    invert, unlearn = defenses.nc(tuning.NET).phases
    self.assertEqual((invert.name, unlearn.name), ('invert', 'unlearn'))
    self.assertEqual((invert.reads, invert.augment), ('clean', False))
    self.assertEqual((unlearn.reads, unlearn.augment), ('clean', True))
    self.assertEqual((invert.num_epochs, unlearn.num_epochs), (80, 100))
    self.assertEqual((invert.batch_size, unlearn.batch_size), (256, 256))

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(inversion_epochs=0), '`inversion_epochs=0` must be positive'),
    (dict(chunk=0), '`chunk=0` must be positive'),
    (dict(patience=0), '`patience=0` must be positive'),
    (dict(success=98.0), r'`success=98.0` is not in \[0, 1\]'),
    (dict(unlearning_ratio=20.0), r'`unlearning_ratio=20.0` is not in \[0, 1'),
    (dict(cost=-1.0), '`cost=-1.0` must not be negative'),
    (dict(schedule='cyclic'), "Did you mean 'cyclic_iter'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.nc(tuning.NET, defenses.NcHParams(**values))

  def test_floats_are_leaves_and_counts_are_not(self):
    self.assertLen(jax.tree.leaves(defenses.NcHParams()), 9)
