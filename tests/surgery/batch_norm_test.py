"""Tests of the re-estimation of running statistics against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models, surgery, types


def _normalize(x, running, train, decay):
  """BatchNorm without scale and shift, with torch's unbiased update."""
  mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
  if not train:
    mean, var = running['mean'], running['var']
    return (x - mean[None, None, None]) / jnp.sqrt(var + 1e-5), running
  k = x.size // x.shape[-1]
  new = {
    'mean': decay * running['mean'] + (1 - decay) * mean,
    'var': decay * running['var'] + (1 - decay) * var * (k / (k - 1)),
  }
  y = (x - mean[None, None, None]) / jnp.sqrt(var + 1e-5)[None, None, None]
  return y, new


def _classifier(decay=0.9):
  """Two BatchNorms with a 1×1 convolution and a ReLU between them."""

  def init(key):
    del key
    layer = lambda c: {'mean': jnp.zeros(c), 'var': jnp.ones(c)}
    params = {'kernel': jnp.array([[1.0, -1.0], [0.5, 2.0]])}
    stats = {'first': layer(2), 'block': {'second': layer(2)}}
    return types.ModelState(params=params, batch_stats=stats)

  def apply(state, images, *, train=False, edits=None):
    del edits
    stats = state.batch_stats
    x, first = _normalize(images, stats['first'], train, decay)
    x = jax.nn.relu(x @ state.params['kernel'])
    x, second = _normalize(x, stats['block']['second'], train, decay)
    stats = {'first': first, 'block': {'second': second}}
    return x.mean(axis=(1, 2)), types.ModelState(
      params=state.params, batch_stats=stats
    )

  return types.Classifier(
    init=init, apply=apply, features=apply, info=_info(decay)
  )


def _tiny():
  spec = types.DataSpec(
    name='toy',
    image_shape=(6, 6, 3),
    num_classes=3,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
  )
  return models.make('tiny', spec, width=4)


def _info(decay):
  return types.ClassifierInfo(
    arch='two_norms',
    num_classes=2,
    image_shape=(3, 3, 2),
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
    taps=(),
    conv_taps=(),
    head_path=(),
    norm_paths=(('first',), ('block', 'second')),
    prune_graph=(),
    norm_decay=decay,
  )


def _batches(n=5, b=4, seed=0):
  rng = np.random.default_rng(seed)
  level = rng.uniform(0.2, 1.0, (n, 1, 1, 1, 1))  # batches that differ
  return (level * rng.uniform(size=(n, b, 3, 3, 2))).astype(np.float32)


def _expected(batches, kernel):
  """The definition, layer by layer, in float64."""
  axes = (1, 2, 3)

  def pool(x):
    means, vars_ = x.mean(axis=axes), x.var(axis=axes, ddof=0)
    k = x[0].size // x.shape[-1]
    unbiased = vars_ * k / (k - 1)
    return {
      'mean': means.mean(axis=0),
      'var': unbiased.mean(axis=0) + means.var(axis=0),
    }

  x = batches.astype(np.float64)
  y = (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(
    x.var(axis=axes, keepdims=True) + 1e-5
  )
  return {
    'first': pool(x),
    'block': {'second': pool(np.maximum(y @ np.asarray(kernel), 0))},
  }


def _assert_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


class ReestimateBnTest(parameterized.TestCase):
  @parameterized.parameters(0.9, 0.0, 0.99)
  def test_equals_the_definition(self, decay):
    classifier = _classifier(decay)
    state = classifier.init(jax.random.key(0))
    batches = _batches()
    got = surgery.reestimate_bn(classifier, state, jnp.asarray(batches))
    _assert_close(
      got.batch_stats,
      _expected(batches, state.params['kernel']),
      rtol=2e-5,
      atol=1e-6,
    )

  def test_first_layer_has_the_statistics_of_all_images_together(self):
    """Up to the unbiased factor of the average batch variance."""
    classifier = _classifier()
    batches = _batches()
    got = surgery.reestimate_bn(
      classifier, classifier.init(jax.random.key(0)), jnp.asarray(batches)
    ).batch_stats['first']
    pixels = batches.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(got['mean'], pixels.mean(axis=0), rtol=1e-5)
    k = batches[0].size // 2
    within = batches.astype(np.float64).var(axis=(1, 2, 3)).mean(axis=0)
    np.testing.assert_allclose(
      got['var'], pixels.var(axis=0) + within / (k - 1), rtol=1e-5
    )

  def test_one_batch_gives_its_own_statistics(self):
    """11: the data that produced the statistics changes them no more."""
    classifier = _classifier()
    state = classifier.init(jax.random.key(0))
    images = jnp.asarray(_batches(n=1))
    train = jax.jit(lambda s: classifier.apply(s, images[0], train=True)[1])
    for _ in range(300):
      state = train(state)
    got = surgery.reestimate_bn(classifier, state, images)
    _assert_close(got.batch_stats, state.batch_stats, rtol=1e-5, atol=1e-6)

  def test_11_on_a_network_with_several_batches(self):
    """Batches of equal content leave the running statistics as they are."""
    classifier = _tiny()
    state = classifier.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (8, 6, 6, 3))
    train = jax.jit(lambda s: classifier.apply(s, images, train=True)[1])
    for _ in range(300):
      state = train(state)
    shuffled = jnp.stack([images, images[::-1], jnp.roll(images, 3, axis=0)])
    got = surgery.reestimate_bn(classifier, state, shuffled)
    _assert_close(got.batch_stats, state.batch_stats, rtol=1e-5, atol=1e-6)
    logits = lambda s: classifier.apply(s, images)[0]
    np.testing.assert_allclose(logits(got), logits(state), atol=1e-5)

  def test_a_network_with_stale_statistics_normalizes_again(self):
    """After it, inference on one batch is training mode on that batch."""
    classifier = _tiny()
    state = classifier.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (64, 6, 6, 3))
    got = surgery.reestimate_bn(classifier, state, images[None])
    expected, _ = classifier.apply(state, images, train=True)
    before = classifier.apply(state, images)[0]
    np.testing.assert_allclose(
      classifier.apply(got, images)[0], expected, atol=2e-3
    )
    self.assertGreater(jnp.max(jnp.abs(before - expected)), 0.02)

  def test_given_statistics_have_no_influence(self):
    classifier = _classifier()
    state = classifier.init(jax.random.key(0))
    odd = types.ModelState(
      params=state.params,
      batch_stats=jax.tree.map(lambda x: x * jnp.nan, state.batch_stats),
    )
    batches = jnp.asarray(_batches())
    _assert_close(
      surgery.reestimate_bn(classifier, odd, batches).batch_stats,
      surgery.reestimate_bn(classifier, state, batches).batch_stats,
      rtol=0,
    )

  def test_order_of_batches_does_not_matter(self):
    classifier = _classifier()
    state = classifier.init(jax.random.key(0))
    batches = jnp.asarray(_batches())
    _assert_close(
      surgery.reestimate_bn(classifier, state, batches[::-1]).batch_stats,
      surgery.reestimate_bn(classifier, state, batches).batch_stats,
      rtol=1e-5,
    )

  def test_weights_are_the_same_arrays(self):
    classifier = _classifier()
    state = classifier.init(jax.random.key(0))
    got = surgery.reestimate_bn(classifier, state, jnp.asarray(_batches()))
    self.assertIs(got.params['kernel'], state.params['kernel'])

  def test_jit_and_vmap_over_models(self):
    classifier = _classifier()
    state = classifier.init(jax.random.key(0))
    batches = jnp.asarray(_batches())
    run = lambda factor: surgery.reestimate_bn(
      classifier,
      types.ModelState(
        params=jax.tree.map(lambda x: factor * x, state.params),
        batch_stats=state.batch_stats,
      ),
      batches,
    )
    stack = jax.jit(jax.vmap(run))(jnp.array([1.0, -2.0]))
    for i, factor in enumerate((1.0, -2.0)):
      _assert_close(
        jax.tree.map(lambda x: x[i], stack),  # noqa: B023
        run(factor),
        rtol=1e-5,
        atol=1e-6,
      )

  def test_model_without_batch_norm_is_returned_as_it_is(self):
    state = types.ModelState(params={'w': jnp.ones(2)}, batch_stats={})
    got = surgery.reestimate_bn(_classifier(), state, jnp.asarray(_batches()))
    self.assertIs(got, state)

  def test_bad_arguments(self):
    classifier = _classifier()
    state = classifier.init(jax.random.key(0))
    batches = jnp.asarray(_batches())
    with self.assertRaisesRegex(ValueError, r'images\[None\]'):
      surgery.reestimate_bn(classifier, state, batches[0])
    with self.assertRaisesRegex(ValueError, 'n ≥ 1'):
      surgery.reestimate_bn(classifier, state, batches[:0])
    with self.assertRaisesRegex(TypeError, 'data.to_float'):
      surgery.reestimate_bn(classifier, state, jnp.uint8(255 * batches))
    with self.assertRaisesRegex(ValueError, 'decay below 1'):
      surgery.reestimate_bn(_classifier(1.0), state, batches)

  def test_unknown_statistics(self):
    classifier = _classifier()._replace(
      apply=lambda state, images, train: (None, state)
    )
    state = types.ModelState(
      params={}, batch_stats={'norm': {'scale_ema': jnp.ones(2)}}
    )
    with self.assertRaisesRegex(ValueError, 'batch_stats/norm/scale_ema'):
      surgery.reestimate_bn(classifier, state, jnp.asarray(_batches()))
