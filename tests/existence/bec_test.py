import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import existence, models, tree, types
from tests import small_nets

N, P = 24, 0.25
CLASSIFIER = small_nets.conv_net()
CLEAN = small_nets.random_images(0, N)
TRIGGERED = small_nets.add_patch(CLEAN)


def net(seed):
  """A random net whose running statistics are not the initial ones."""
  state = CLASSIFIER.init(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  noise = lambda x: x + jnp.asarray(rng.uniform(0, 0.5, x.shape), jnp.float32)
  return types.ModelState(
    params=state.params, batch_stats=jax.tree.map(noise, state.batch_stats)
  )


def mix(a, b, t):
  return tree.interpolate(a, b, t)


@functools.cache
def reference(seed=1, p=P, triggered=True, batch_size=10):
  make = functools.partial(
    existence.reference, CLASSIFIER, p=p, batch_size=batch_size
  )
  pairs = TRIGGERED if triggered else CLEAN
  return jax.jit(make)(net(seed), CLEAN, pairs, TRIGGERED)


@functools.cache
def program(debiased=False):
  return jax.jit(
    functools.partial(
      existence.layer_cka, CLASSIFIER, debiased=debiased, batch_size=10
    )
  )


def similarity(state, ref=None, debiased=False):
  ref = reference() if ref is None else ref
  return program(debiased)(ref, state, TRIGGERED).value


def naive_bec(attacked, defended, clean, p):
  """Definition A.2 in float64, all images and channels at once."""
  maps = lambda state, images: {
    tap: np.float64(x)
    for tap, x in CLASSIFIER.features(state, np.float32(images) / 255).items()
  }
  off, on = maps(attacked, CLEAN), maps(attacked, TRIGGERED)
  other = {
    'defended': maps(defended, TRIGGERED),
    'clean': maps(clean, TRIGGERED),
  }
  h = np.eye(N) - np.ones((N, N)) / N
  s = {'defended': [], 'clean': []}
  for tap in ('conv1', 'conv2'):
    change = np.sqrt(((on[tap] - off[tap]) ** 2).sum((1, 2))).mean(0)
    top = np.argsort(-change, kind='stable')[: int(p * len(change))]
    gram = lambda x: h @ x.reshape(N, -1) @ x.reshape(N, -1).T @ h
    k = gram(on[tap][..., top])
    for name, values in s.items():
      l = gram(other[name][tap][..., top])
      values.append(np.sum(k * l) / np.linalg.norm(k) / np.linalg.norm(l))
  s_d, s_c = np.mean(s['defended']), np.mean(s['clean'])
  return (s_d - s_c) / (1 - s_c)


class ReferenceTest(parameterized.TestCase):
  def test_row10_number_of_neurons(self):
    table = {0.05: (3, 6, 12, 25), 0.1: (6, 12, 25, 51), 0.2: (12, 25, 51, 102)}
    for p, expected in table.items():
      counts = [existence.num_neurons(c, p) for c in (64, 128, 256, 512)]
      self.assertEqual(tuple(counts), expected)
    self.assertEqual(existence.num_neurons(100, 0.29), 29)
    self.assertEqual(existence.num_neurons(8, 0.1), 1)

  def test_row10_layers_of_preactresnet18(self):
    spec = types.DataSpec(
      name='toy',
      image_shape=(32, 32, 3),
      num_classes=10,
      mean=(0.5,) * 3,
      std=(0.25,) * 3,
    )
    classifier = models.make('preactresnet18', spec)
    expected = [
      f'stage{s}.{b}.conv{i}'
      for s in (1, 2, 3, 4)
      for b in (0, 1)
      for i in (1, 2)
    ]
    self.assertEqual(list(classifier.info.conv_taps), expected)
    state = jax.eval_shape(classifier.init, jax.random.key(0))
    images = np.zeros((4, 32, 32, 3), np.float32)
    ref = jax.eval_shape(
      functools.partial(existence.reference, classifier),
      *(state, images, images, images),
    )
    kept = [ref.indices[tap].shape[0] for tap in ref.taps]
    self.assertEqual(kept, [6] * 4 + [12] * 4 + [25] * 4 + [51] * 4)
    self.assertEqual(ref.grams.shape, (16, 4, 4))

  def test_strongest_channels_in_order(self):
    ref = reference()
    for tap, k in (('conv1', 2), ('conv2', 4)):
      change = np.asarray(ref.tac[tap])
      np.testing.assert_array_equal(
        ref.indices[tap], np.argsort(-change, kind='stable')[:k]
      )
    self.assertEqual(ref.grams.shape, (2, N, N))

  def test_ties_go_to_the_lowest_index(self):
    ref = reference(triggered=False)  # no trigger: all changes are 0
    np.testing.assert_array_equal(ref.indices['conv1'], [0, 1])
    np.testing.assert_array_equal(ref.indices['conv2'], [0, 1, 2, 3])

  def test_taps_keep_their_order(self):
    ref = existence.reference(
      CLASSIFIER, net(1), CLEAN, TRIGGERED, TRIGGERED, taps=('conv2', 'conv1')
    )
    self.assertEqual(ref.taps, ('conv2', 'conv1'))
    swapped = existence.reference(
      CLASSIFIER, net(1), CLEAN, TRIGGERED, TRIGGERED
    )
    np.testing.assert_array_equal(ref.grams[0], swapped.grams[1])

  @parameterized.parameters(
    (dict(p=10.0), 'use 0.1 for 10 %'),
    (dict(p=0.0), r'not in \(0, 1\]'),
    (dict(taps=()), 'pass `taps`'),
    (dict(images=TRIGGERED[:3]), 'at least 4 images'),
    (dict(triggered=TRIGGERED[:5]), 'no pairs'),
    (dict(taps=('conv3',)), 'Did you mean'),
  )
  def test_errors_name_the_cure(self, change, message):
    values = dict(clean=CLEAN, triggered=TRIGGERED, images=TRIGGERED) | change
    with self.assertRaisesRegex(ValueError, message):
      existence.reference(CLASSIFIER, net(1), **values)


class SimilarityTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_row7_attacked_is_one_and_clean_is_zero(self, debiased):
    of_attacked = similarity(net(1), debiased=debiased)
    of_clean = similarity(net(2), debiased=debiased)
    np.testing.assert_allclose(of_attacked, 1, atol=1e-5)
    for field in ('bec', 'bec_raw', 'bec_mean_of_ratios'):
      one = existence.bec(of_attacked, of_clean)[field]
      zero = existence.bec(of_clean, of_clean)[field]
      self.assertAlmostEqual(float(one), 1, delta=1e-5)
      self.assertAlmostEqual(float(zero), 0, delta=1e-5)

  @parameterized.parameters(0.2, 5.0)
  def test_row8_rescaling_a_block_changes_nothing(self, c):
    defended = mix(net(1), net(2), 0.3)
    params, stats = dict(defended.params), dict(defended.batch_stats)
    params['conv1'] = c * params['conv1']
    mean, var = stats['bn1']['mean'], stats['bn1']['var']
    eps = small_nets.BN_EPS
    stats['bn1'] = {'mean': c * mean, 'var': c**2 * (var + eps) - eps}
    scaled = types.ModelState(params=params, batch_stats=stats)
    x = np.float32(CLEAN) / 255
    np.testing.assert_allclose(
      CLASSIFIER.apply(scaled, x)[0],
      CLASSIFIER.apply(defended, x)[0],
      atol=1e-4,
    )
    of_clean = similarity(net(2))
    self.assertAlmostEqual(
      float(existence.bec(similarity(scaled), of_clean)['bec_raw']),
      float(existence.bec(similarity(defended), of_clean)['bec_raw']),
      delta=1e-4,
    )

  def test_defended_between_clean_and_attacked(self):
    of_clean = similarity(net(2))
    near, far = (similarity(mix(net(1), net(2), t)) for t in (0.1, 0.6))
    near, far = (
      float(existence.bec(x, of_clean)['bec_raw']) for x in (near, far)
    )
    self.assertGreater(1, near)
    self.assertGreater(near, far)

  def test_unselected_channels_do_not_matter(self):
    state, chosen = net(3), np.asarray(reference().indices['conv2'])
    others = np.setdiff1d(np.arange(16), chosen)
    kernel = state.params['conv2'].at[..., others].set(7.0)
    changed = types.ModelState(
      params=state.params | {'conv2': kernel}, batch_stats=state.batch_stats
    )
    np.testing.assert_array_equal(similarity(state), similarity(changed))

  def test_batch_size_does_not_matter(self):
    other = existence.similarity(
      CLASSIFIER, reference(), net(3), TRIGGERED, batch_size=N
    )
    np.testing.assert_allclose(other, similarity(net(3)), rtol=1e-5)

  def test_dead_layer_is_zero_and_flagged(self):
    state = net(3)
    params = state.params | {'conv1': jnp.zeros_like(state.params['conv1'])}
    value, dead = program()(
      reference(),
      types.ModelState(params=params, batch_stats=state.batch_stats),
      TRIGGERED,
    )
    # Nothing varies behind a zero kernel, so both layers are dead.
    np.testing.assert_array_equal(dead, [True, True])
    np.testing.assert_array_equal(value, [0, 0])

  def test_stack_equals_loop(self):
    states = [net(2), net(3), mix(net(1), net(2), 0.5)]
    lifted = jax.jit(
      jax.vmap(
        functools.partial(existence.similarity, CLASSIFIER, batch_size=10),
        in_axes=(None, 0, None),
      )
    )(reference(), tree.stack(states), TRIGGERED)
    single = np.stack([similarity(state) for state in states])
    np.testing.assert_allclose(lifted, single, rtol=1e-4)

  def test_order_of_images_must_be_that_of_the_reference(self):
    turned = program()(reference(), net(1), TRIGGERED[::-1]).value
    self.assertLess(float(turned.max()), 0.99)

  def test_errors_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'same order'):
      existence.similarity(CLASSIFIER, reference(), net(1), TRIGGERED[:5])
    narrow = small_nets.conv_net(width=4)
    with self.assertRaisesRegex(ValueError, 'never by changing shapes'):
      existence.similarity(
        narrow, reference(), narrow.init(jax.random.key(0)), TRIGGERED
      )


class CoefficientTest(parameterized.TestCase):
  def test_closed_form(self):
    result = existence.bec([0.9, 0.7], [0.8, 0.5])
    expected = {
      's_defended': 0.8,
      's_clean': 0.65,
      'bec_raw': 0.15 / 0.35,
      'bec': 0.15 / 0.35,
      'bec_per_layer': [0.5, 0.4],
      'bec_mean_of_ratios': 0.45,
    }
    self.assertEqual(set(result), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(result[name], value, rtol=1e-5)

  def test_raw_is_kept_and_bec_is_clipped(self):
    low = existence.bec([0.2], [0.6])
    self.assertAlmostEqual(float(low['bec_raw']), -1, delta=1e-5)
    self.assertEqual(float(low['bec']), 0)
    high = existence.bec([1.1], [0.0])
    self.assertAlmostEqual(float(high['bec_raw']), 1.1, delta=1e-5)
    self.assertEqual(float(high['bec']), 1)

  def test_layers_with_a_floor_of_one_are_left_out(self):
    result = existence.bec([0.9, 0.9], [0.9995, 0.8])
    np.testing.assert_allclose(
      result['bec_per_layer'], [np.nan, 0.5], rtol=1e-5
    )
    self.assertAlmostEqual(float(result['bec_mean_of_ratios']), 0.5, delta=1e-5)
    nowhere = existence.bec([0.9], [1.0])
    for field in ('bec', 'bec_raw', 'bec_mean_of_ratios'):
      self.assertTrue(np.isnan(nowhere[field]), field)

  def test_stack_of_defenses_against_one_clean_model(self):
    result = existence.bec([[0.9, 0.7], [0.8, 0.5]], [0.8, 0.5])
    np.testing.assert_allclose(result['bec'], [0.15 / 0.35, 0], atol=1e-6)
    self.assertEqual(result['bec_per_layer'].shape, (2, 2))
    with self.assertRaisesRegex(ValueError, 'one reference'):
      existence.bec([0.9, 0.7], [0.8])

  def test_legacy_minmax_is_relative_to_the_row(self):
    np.testing.assert_allclose(
      existence.legacy_minmax(0.6, [0.9, 0.5, 0.7]), [0.25, 1, 0, 0.5]
    )
    self.assertTrue(np.isnan(existence.legacy_minmax(0.6, [0.6])).all())


class MeasureTest(parameterized.TestCase):
  def measure(self, **change):
    values = dict(
      attacked=net(1),
      clean=net(2),
      defended=mix(net(1), net(2), 0.3),
      images=CLEAN,
      triggered=TRIGGERED,
      key=jax.random.key(0),
      num_tac=N,
      num_cka=N,
      p=P,
      batch_size=10,
    )
    return existence.measure(CLASSIFIER, **(values | change))

  def test_equals_the_definition(self):
    result = self.measure()
    expected = naive_bec(net(1), mix(net(1), net(2), 0.3), net(2), P)
    self.assertAlmostEqual(float(result['bec_raw']), expected, delta=1e-4)
    self.assertEqual(result['n'], N)
    self.assertEqual(result['taps'], ('conv1', 'conv2'))
    self.assertEqual(result['idx']['conv2'].shape, (4,))
    self.assertIsInstance(result['cka_clean'], np.ndarray)

  def test_deployed_classifier_is_the_one_compared(self):
    blind = CLASSIFIER._replace(
      features=lambda state, images, **kw: CLASSIFIER.features(
        state, 0 * images, **kw
      )
    )
    result = self.measure(defended_classifier=blind)
    np.testing.assert_array_equal(result['cka_defended'], 0)
    self.assertTrue(result['dead_layer'].all())

  def test_errors_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'needs a clean model'):
      self.measure(clean=None)
    narrow = small_nets.conv_net(width=4).init(jax.random.key(0))
    with self.assertRaisesRegex(
      ValueError, 'params/.* in attacked but .* mask'
    ):
      self.measure(defended=narrow)
    with self.assertRaisesRegex(ValueError, f'num_tac={N} or fewer'):
      self.measure(num_tac=N + 1)
    with self.assertRaisesRegex(ValueError, 'num_cka=8 or fewer'):
      self.measure(num_tac=8, num_cka=9)

  def test_indices_are_fixed_by_the_key(self):
    draw = functools.partial(
      existence.draw_indices, num_images=30, num_tac=20, num_cka=8
    )
    pairs, images = draw(jax.random.key(0))
    again, _ = draw(jax.random.key(0))
    other, _ = draw(jax.random.key(1))
    np.testing.assert_array_equal(pairs, again)
    self.assertFalse(np.array_equal(pairs, other))
    self.assertLen(set(pairs.tolist()), 20)
    self.assertLess(set(images.tolist()), set(pairs.tolist()))
