import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import eval as evaluation
from bdjax import keys, tree, types
from tests.eval import linear

SPEC = linear.spec()
NET = linear.classifier(SPEC)
RNG = np.random.default_rng(0)
NUM = 23
IMAGES = RNG.integers(0, 256, (NUM, 2, 2, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 4, NUM)
TARGET = 1


def identity(images, key, index):
  del key, index
  return images


def noise(images, key, index):
  """A random trigger: one draw per example, straight from its key."""
  bits = jax.random.key_data(keys.per_example(key, index))[:, 0]
  return jnp.abs(images - (bits / 2.0**32)[:, None, None, None])


def to_target(labels):
  return jnp.full_like(labels, TARGET)


def shifted(labels):
  return (labels + 1) % 4


@functools.lru_cache
def program(stamp, relabel, batch_size):
  """One compilation for all tests that count with the same functions."""
  fn = functools.partial(
    evaluation.count, NET, stamp=stamp, relabel=relabel, batch_size=batch_size
  )
  return jax.jit(fn)


def count(state, stamp=noise, relabel=to_target, batch_size=8, **kwargs):
  kwargs = {
    'images': IMAGES,
    'labels': LABELS,
    'index': np.arange(NUM),
    'key': jax.random.key(3),
  } | kwargs
  return program(stamp, relabel, batch_size)(state, **kwargs)


def as_ints(counts):
  return {name: int(value) for name, value in counts.items()}


class EvaluateTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.state = NET.init(jax.random.key(0))

  def test_counts_equal_a_naive_loop(self):
    counts = as_ints(count(self.state, stamp=lambda x, k, i: 1 - x))
    kernel = np.asarray(self.state.params['kernel'], np.float64)
    predict = lambda x: np.argmax(x.reshape(len(x), -1) @ kernel, axis=-1)
    clean, stamped = predict(IMAGES / 255.0), predict(1 - IMAGES / 255.0)
    others = LABELS != TARGET
    self.assertEqual(
      counts,
      {
        'clean_hits': np.sum(clean == LABELS),
        'clean_total': NUM,
        'attack_hits': np.sum(stamped[others] == TARGET),
        'robust_hits': np.sum((stamped == LABELS)[others]),
        'triggered_total': np.sum(others),
        'non_finite': 0,
      },
    )

  def test_constant_classifier_has_asr_one_over_other_classes(self):
    state = linear.constant(SPEC, TARGET)
    counts = as_ints(count(state))
    self.assertEqual(counts['triggered_total'], np.sum(LABELS != TARGET))
    self.assertEqual(counts['attack_hits'], counts['triggered_total'])
    self.assertEqual(counts['robust_hits'], 0)
    self.assertEqual(counts['clean_hits'], np.sum(LABELS == TARGET))

  def test_identity_attack_has_the_error_rate_into_the_target(self):
    rates = evaluation.rates(count(self.state, stamp=identity))
    logits, _ = NET.apply(self.state, jnp.asarray(IMAGES) / 255)
    predicted = np.argmax(np.asarray(logits), axis=-1)
    others = LABELS != TARGET
    self.assertAlmostEqual(rates['asr'], np.mean(predicted[others] == TARGET))
    self.assertAlmostEqual(
      rates['r_acc'], np.mean(predicted[others] == LABELS[others])
    )

  def test_all_to_all_counts_every_image(self):
    counts = as_ints(count(self.state, relabel=shifted))
    self.assertEqual(counts['triggered_total'], NUM)

  def test_attack_and_robust_hits_exclude_each_other(self):
    for relabel in (to_target, shifted):
      counts = as_ints(count(self.state, relabel=relabel))
      self.assertLessEqual(
        counts['attack_hits'] + counts['robust_hits'],
        counts['triggered_total'],
      )

  @parameterized.parameters(1, 22, 256)
  def test_padding_and_batch_size_do_not_change_counts(self, batch_size):
    # The random trigger shows that stamps depend on the example alone.
    want = as_ints(count(self.state))
    self.assertEqual(as_ints(count(self.state, batch_size=batch_size)), want)

  def test_stamp_keys_depend_on_example_index_not_on_position(self):
    seen = lambda **kwargs: as_ints(count(self.state, **kwargs))
    order = RNG.permutation(NUM)
    moved = {'images': IMAGES[order], 'labels': LABELS[order]}
    self.assertEqual(seen(index=order, **moved), seen())
    self.assertNotEqual(seen(**moved), seen())

  def test_stamps_get_the_given_index(self):
    first_is_seven = lambda x, key, index: jnp.where(
      (index == 7)[:, None, None, None], jnp.nan, x
    )
    counts = count(self.state, stamp=first_is_seven, index=np.arange(NUM) + 7)
    self.assertEqual(int(counts['non_finite']), int(LABELS[0] != TARGET))

  def test_another_key_stamps_differently(self):
    one = as_ints(count(self.state, key=jax.random.key(1)))
    two = as_ints(count(self.state, key=jax.random.key(2)))
    self.assertNotEqual(one, two)

  @parameterized.parameters(jnp.nan, jnp.inf)
  def test_non_finite_logits_are_no_class(self, value):
    params = {'kernel': jnp.full((12, 4), value), 'bias': jnp.zeros(4)}
    state = types.ModelState(
      params=params, batch_stats={'passes': jnp.zeros(())}
    )
    to_zero = jnp.zeros_like  # argmax over NaN is 0: this target would "win"
    counts = as_ints(count(state, relabel=to_zero))
    self.assertEqual(counts['attack_hits'], 0)
    self.assertEqual(counts['robust_hits'], 0)
    self.assertEqual(counts['clean_hits'], 0)
    self.assertEqual(counts['non_finite'], NUM)
    self.assertFalse(evaluation.rates(count(state))['finite'])

  def test_one_broken_view_is_counted_once(self):
    broken = lambda x, key, index: x * jnp.nan
    counts = as_ints(count(self.state, stamp=broken))
    self.assertEqual(counts['non_finite'], counts['triggered_total'])
    self.assertGreaterEqual(counts['clean_hits'], 1)

  def test_counts_are_int32_and_jit_equals_eager(self):
    jitted = count(self.state)
    eager = evaluation.count(
      NET,
      self.state,
      IMAGES,
      LABELS,
      stamp=noise,
      relabel=to_target,
      key=jax.random.key(3),
    )
    chex.assert_trees_all_equal(eager, jitted)
    self.assertEqual({x.dtype for x in eager.values()}, {np.dtype('int32')})

  @parameterized.parameters(4, 8, 100)
  def test_losses_are_means_over_the_counted_images(self, batch_size):
    state = NET.init(jax.random.key(5))
    run = functools.partial(
      evaluation.count,
      NET,
      stamp=identity,
      relabel=to_target,
      with_loss=True,
      batch_size=batch_size,
    )
    counts = jax.jit(run)(
      state, images=IMAGES, labels=LABELS, key=jax.random.key(3)
    )
    logits = np.float64(NET.apply(state, np.float32(IMAGES) / 255)[0])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rates = evaluation.rates(counts)
    expected = -log_p[np.arange(NUM), LABELS].mean()
    self.assertAlmostEqual(rates['clean_loss'], expected, delta=1e-5)
    expected = -log_p[LABELS != TARGET, TARGET].mean()
    self.assertAlmostEqual(rates['attack_loss'], expected, delta=1e-5)

  @parameterized.parameters(4, 100)
  def test_cross_triggers_are_counted_on_all_images(self, batch_size):
    state = NET.init(jax.random.key(5))
    cross = lambda x, key, index: x[:, ::-1]
    counts = evaluation.count(
      NET,
      state,
      IMAGES,
      LABELS,
      stamp=noise,
      relabel=to_target,
      cross=cross,
      key=jax.random.key(3),
      batch_size=batch_size,
    )
    logits, _ = NET.apply(state, np.float32(IMAGES[:, ::-1]) / 255)
    said = np.argmax(logits, -1)
    hits = np.sum((said == TARGET) & (LABELS != TARGET))
    plain = as_ints(count(state))
    want = {'cross_hits': np.sum(said == LABELS), 'cross_attack_hits': hits}
    self.assertEqual(as_ints(counts), plain | want)
    self.assertGreater(want['cross_hits'], 0)

  def test_a_broken_cross_view_is_not_finite(self):
    broken = lambda x, key, index: x * jnp.nan
    rates = evaluation.evaluate(
      NET,
      self.state,
      IMAGES,
      LABELS,
      stamp=noise,
      relabel=to_target,
      cross=broken,
      key=jax.random.key(3),
    )
    self.assertEqual((rates['cross_acc'], rates['finite']), (0.0, False))
    self.assertIsNotNone(rates['asr'])

  def test_cross_needs_an_attack(self):
    with self.assertRaisesRegex(ValueError, '`cross` counts beside'):
      evaluation.count(NET, self.state, IMAGES, LABELS, cross=identity)

  def test_stack_equals_loop(self):
    states = [NET.init(jax.random.key(i)) for i in range(3)]
    stacked = tree.stack(states)
    want = tree.stack([count(s) for s in states])
    chex.assert_trees_all_equal(jax.vmap(count)(stacked), want)
    chex.assert_trees_all_equal(jax.lax.map(count, stacked), want)
    self.assertEqual(evaluation.rates(want)['asr'].shape, (3,))

  def test_evaluate_is_rates_of_counts(self):
    kwargs = {
      'stamp': noise,
      'relabel': to_target,
      'key': jax.random.key(3),
    }
    got = evaluation.evaluate(NET, self.state, IMAGES, LABELS, **kwargs)
    self.assertEqual(got, evaluation.rates(count(self.state)))
    clean = evaluation.evaluate(NET, self.state, IMAGES, LABELS)
    self.assertEqual(clean['c_acc'], got['c_acc'])
    self.assertIsNone(clean['asr'])

  def test_evaluate_does_not_recompile_for_another_model(self):
    traces = []

    def apply(state, images, **kwargs):
      traces.append(1)
      return NET.apply(state, images, **kwargs)

    net = NET._replace(apply=apply)
    for i in range(3):
      state = NET.init(jax.random.key(i))
      evaluation.evaluate(net, state, IMAGES, LABELS)
      if i == 0:
        first = len(traces)
    self.assertLen(traces, first)

  def test_float_images_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'uint8'):
      count(self.state, images=IMAGES / 255)

  def test_mismatched_lengths_are_named(self):
    with self.assertRaisesRegex(ValueError, '`labels` has shape'):
      count(self.state, labels=LABELS[1:])
    with self.assertRaisesRegex(ValueError, '`index` has shape'):
      count(self.state, index=np.arange(3))

  def test_nothing_to_evaluate_is_an_error(self):
    with self.assertRaisesRegex(ValueError, '0 images'):
      count(self.state, images=IMAGES[:0], labels=LABELS[:0])

  @parameterized.parameters('stamp', 'relabel', 'key')
  def test_half_an_attack_is_refused(self, missing):
    with self.assertRaisesRegex(ValueError, 'all three'):
      count(self.state, **{missing: None})

  def test_untyped_key_is_refused(self):
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      count(self.state, key=np.zeros(2, np.uint32))

  def test_a_stamp_that_changes_the_shape_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'keeps the shape'):
      count(self.state, stamp=lambda x, key, index: x[:, :1])


if __name__ == '__main__':
  absltest.main()
