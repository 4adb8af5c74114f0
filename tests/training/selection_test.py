"""Selection: both rules on scripted curves, and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import training, types
from tests import small_nets

KEY = jax.random.key(0)


def feed(num):
  """Images that carry their own number in their first pixel."""
  images = np.zeros((num, 1, 1, 1), np.uint8)
  images[:, 0, 0, 0] = np.arange(num)
  return training.make_feed(images, np.zeros(num, int))


def scripted(table):
  """Candidate i is right about image j where table[i][j]; labels are 0."""
  table = jnp.asarray(table, jnp.float32)

  def logits(carry, images):
    del carry
    j = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)
    right = table[:, j]
    return jnp.stack([right, 1 - right], axis=-1)

  return logits


def curve(hits, num):
  """A table whose row i has hits[i] ones."""
  return [[float(j < n) for j in range(num)] for n in hits]


def finish(carry, i, accuracy):
  return types.Carry(
    model=carry.model, extra={'i': i, 'accuracy': accuracy, 'was': carry.extra}
  )


def select(table, feeds, **rule):
  """The index taken, and all accuracies."""
  phases = training.selection(scripted(table), len(table), finish, **rule)
  model = types.ModelState(params={'w': jnp.ones(2)}, batch_stats={})
  carry, metrics = training.run_phases(
    phases, types.Carry(model=model, extra={'mine': jnp.ones(1)}), feeds, KEY
  )
  np.testing.assert_array_equal(carry.model.params['w'], np.ones(2))
  np.testing.assert_array_equal(carry.extra['was']['mine'], np.ones(1))
  return int(carry.extra['i']), np.asarray(carry.extra['accuracy']), metrics


class ValTest(parameterized.TestCase):
  @parameterized.parameters(
    ([10, 10, 9, 8, 10], 0.1, 2),  # before the *first* fall too far
    ([10, 10, 9, 8, 10], 0.2, 4),
    ([10, 5, 10, 10], 0.1, 0),
    ([5, 5, 4, 3], 0.2, 2),  # relative to the first candidate
    ([5, 10, 5, 4], 0.1, 2),  # gains do not raise the bar
    ([10, 0, 0], 1.0, 2),
    ([10, 10, 10], 0.0, 2),
  )
  def test_rule_on_a_scripted_curve(self, hits, max_drop, want):
    feeds = {'clean_val': feed(10)}
    got, accuracy, _ = select(
      curve(hits, 10), feeds, max_drop=max_drop, batch_size=4
    )
    self.assertEqual(got, want)
    np.testing.assert_allclose(accuracy, np.asarray(hits) / 10, rtol=1e-6)

  @parameterized.parameters(1, 3, 4, 7, 10, 64)
  def test_examples_that_come_again_are_not_counted_twice(self, batch_size):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2, (3, 10))
    _, accuracy, metrics = select(
      table, {'clean_val': feed(10)}, batch_size=batch_size, max_drop=1.0
    )
    np.testing.assert_allclose(accuracy, table.mean(1), rtol=1e-6)
    size = min(batch_size, 10)
    self.assertLen(metrics['select']['accuracy'], -(-10 // size))

  def test_held_out_images_are_a_fifth_of_the_clean_set(self):
    clean = feed(20)
    _, val = training.split_feed(clean)
    table = np.zeros((2, 20))
    table[:, np.asarray(val.index)] = 1
    _, accuracy, _ = select(table, {'clean': clean})
    np.testing.assert_array_equal(accuracy, [1, 1])

  def test_a_drop_may_be_traced(self):
    table = curve([10, 9, 8], 10)
    taken = jax.jit(
      lambda drop: training.run_phases(
        training.selection(scripted(table), 3, finish, max_drop=drop),
        types.Carry(
          model=types.ModelState(params={}, batch_stats={}), extra={}
        ),
        {'clean_val': feed(10)},
        KEY,
      )[0].extra['i']
    )
    self.assertEqual([int(taken(d)) for d in (0.0, 0.1, 0.2)], [0, 1, 2])

  def test_reads_held_out_clean_images_only(self):
    (phase,) = training.selection(scripted([[1], [1]]), 2, finish)
    self.assertEqual((phase.reads, phase.num_epochs), ('clean_val', 1))
    self.assertFalse(phase.augment)
    self.assertFalse(phase.drop_last)


class OracleTest(parameterized.TestCase):
  @parameterized.parameters(
    # Clean hits, triggered images not sent to the target, the one taken.
    ([10, 10, 10, 10], [0, 3, 9, 5], 2),
    ([10, 10, 9, 10], [0, 3, 9, 5], 3),  # a drop of 0.1 is already too much
    ([10, 5, 10, 10], [0, 9, 3, 3], 2),  # looks beyond a fall; first of equals
    ([10, 5, 5, 5], [0, 9, 9, 9], 0),
  )
  def test_rule_on_a_scripted_curve(self, hits, resisted, want):
    # Triggered images have the target for a label, here class 0 as well; the
    # second ten images are they.
    misled = 10 - np.asarray(resisted)
    table = np.concatenate([curve(hits, 10), curve(misled, 10)], axis=1)
    rows = feed(20)
    feeds = {
      'test_clean': training.make_feed(rows.images, rows.labels, range(10)),
      'test_triggered': training.make_feed(
        rows.images, rows.labels, range(10, 20)
      ),
    }
    got, accuracy, metrics = select(
      table, feeds, selector='oracle', batch_size=3
    )
    self.assertEqual(got, want)
    np.testing.assert_allclose(accuracy, np.asarray(hits) / 10, rtol=1e-6)
    self.assertEqual(set(metrics), {'select_clean', 'select'})

  def test_the_rule_of_val_on_the_test_set(self):
    got, _, metrics = select(
      curve([10, 10, 9, 8, 10], 10),
      {'test_clean': feed(10)},
      selector='oracle',
      oracle='last_within',
    )
    self.assertEqual(got, 2)
    self.assertEqual(set(metrics), {'select'})

  def test_selectors_may_disagree(self):
    # Accuracy dips once: val stops before, the oracle looks beyond.
    hits, misled = [10, 5, 10], [10, 5, 0]
    table = curve(hits, 10)
    val, _, _ = select(table, {'clean_val': feed(10)})
    both = np.concatenate([table, curve(misled, 10)], axis=1)
    rows = feed(20)
    parts = [
      training.make_feed(rows.images, rows.labels, part)
      for part in (range(10), range(10, 20))
    ]
    feeds = dict(zip(('test_clean', 'test_triggered'), parts, strict=True))
    oracle, _, _ = select(both, feeds, selector='oracle')
    self.assertEqual((val, oracle), (0, 2))


class BadValuesTest(parameterized.TestCase):
  @parameterized.parameters(
    (2, dict(selector='orakle'), "Did you mean 'oracle'"),
    (2, dict(oracle='least'), "Did you mean 'least_asr'"),
    (2, dict(max_drop=10.0), r'`max_drop=10.0` is not in \[0, 1\]'),
    (2, dict(batch_size=0), '`batch_size=0` must be positive'),
    (1, {}, 'nothing to select'),
  )
  def test_messages(self, num, values, message):
    with self.assertRaisesRegex(ValueError, message):
      training.selection(scripted([[1]]), num, finish, **values)

  def test_a_selection_without_its_feed_says_which_is_missing(self):
    with self.assertRaisesRegex(ValueError, "reads 'test_triggered'"):
      select(curve([1, 1], 1), {'test_clean': feed(1)}, selector='oracle')


class OneByOneTest(parameterized.TestCase):
  def test_equals_a_forward_pass_of_each(self):
    net = small_nets.linear_net(size=1)
    state = net.init(KEY)

    def candidate(carry, i):
      params = jax.tree.map(lambda x: x * i, carry.model.params)
      return types.ModelState(params=params, batch_stats={})

    images = jnp.asarray(np.random.default_rng(0).random((5, 1, 1, 3)))
    logits = training.one_by_one(net, candidate, 3)
    got = logits(types.Carry(model=state, extra={}), images)
    self.assertEqual(got.shape, (3, 5, 2))
    base = net.apply(state, images)[0]
    for i in range(3):
      np.testing.assert_allclose(got[i], i * base, rtol=1e-5)
