"""What every classifier promises, whatever its architecture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import nnx

from bdjax import models, tree, types

OPTIONS = {
  'preactresnet18': {'width': 2},
  'tiny': {'width': 4},
  'vgg19_bn': {'width': 2},
  'resnet18': {'width': 2, 'blocks': 1},
  'resnet50': {'width': 2, 'blocks': 1},
  'wrn28_2': {'width': 2, 'blocks': 1},
  'convnext_tiny': {'width': 2, 'blocks': 1},
  'vit_b_16': {'width': 8, 'depth': 2, 'image_size': 16, 'patch_size': 8},
  'densenet161': {'width': 4, 'blocks': 1},
  'mobilenet_v3_large': {'width': 1, 'blocks': 1, 'stages': 3},
  'efficientnet_b3': {'width': 1, 'blocks': 1, 'stages': 3},
}
# Tried in every run of the tests; the other networks take twice their time.
QUICK = ('preactresnet18', 'tiny', 'vgg19_bn', 'resnet18', 'vit_b_16')
LARGE = ('vgg19_bn', 'convnext_tiny', 'densenet161')  # need 32×32 images
CONCATENATED = ('densenet161',)  # no convolution comes before their norms


def spec(side: int) -> types.DataSpec:
  return types.DataSpec(
    name='toy',
    image_shape=(side, side, 3),
    num_classes=4,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
  )


class NnxNet(nnx.Module):
  """One convolution, norm and head, as an NNX user would write it."""

  def __init__(self, rngs: nnx.Rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
    self.head = nnx.Linear(4, 4, rngs=rngs)

  def __call__(self, x, tap):
    x = tap.through('conv', self.conv, x)
    x = nnx.relu(tap.through('norm', self.norm, x))
    return self.head(tap('penultimate', x.mean((1, 2))))


@functools.cache
def make(name: str) -> types.Classifier:
  if name == 'nnx':
    return models.from_nnx(
      NnxNet,
      spec(8),
      arch='nnx',
      conv_taps=('conv',),
      prune_graph=(types.PruneGroup(('norm',), ('conv',), 4),),
    )
  side = 32 if name in LARGE else 8
  return models.make(name, spec(side), **OPTIONS[name])


@functools.cache
def programs(name: str):
  """(jitted inference features, jitted training pass)."""
  model = make(name)
  return (
    jax.jit(model.features),
    jax.jit(lambda state, images: model.apply(state, images, train=True)),
  )


@functools.cache
def states(name: str) -> tuple[types.ModelState, ...]:
  """Three models whose running statistics have moved."""
  model, (_, train) = make(name), programs(name)
  return tuple(
    train(model.init(jax.random.key(i)), batch(name))[1] for i in range(3)
  )


@functools.cache
def batch(name: str) -> jax.Array:
  shape = (8, *make(name).info.image_shape)
  return jax.random.uniform(jax.random.key(9), shape)


def look_up(params, path):
  for name in path:
    params = params[name]
  return params


def assert_close(a, b, rtol=1e-4):
  """Each leaf to rtol of its largest entry."""
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=rtol, atol=rtol * (1e-3 + np.abs(y).max())
    ),
    a,
    b,
  )


class Promises:
  """The tests, each of one network by its name."""

  def test_listed_taps_are_the_features(self, name):
    model = make(name)
    features = jax.eval_shape(model.features, states(name)[0], batch(name))
    self.assertCountEqual(features, model.info.taps)
    self.assertEqual(features['input'].shape, batch(name).shape)
    self.assertEqual(features['logits'].shape, (8, 4))
    self.assertEqual(features['penultimate'].ndim, 2)
    for leaf in features.values():
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_facts_describe_the_weights(self, name):
    info, params = make(name).info, states(name)[0].params
    hash(info)
    self.assertContainsSubset(info.conv_taps, info.taps)
    self.assertEqual(look_up(params, info.head_path)['kernel'].shape[-1], 4)
    self.assertEqual(info.norm_paths, tuple(g.norm for g in info.prune_graph))
    for group in info.prune_graph:
      scale = look_up(params, group.norm)['scale']
      self.assertEqual(scale.shape, (group.channels,))
      if group.conv:
        kernel = look_up(params, group.conv)['kernel']
        self.assertEqual(kernel.shape[-1], group.channels)
        self.assertIn(group.previous, (group.conv, None))
      if group.previous:
        kernel = look_up(params, group.previous)['kernel']
        self.assertEqual(kernel.shape[-1], group.channels)
      if group.tap:
        self.assertIn(f'{group.tap}.in', info.taps)
      if name in models.REGISTRY:
        self.assertIsNotNone(group.tap)
      if name in models.REGISTRY and name not in CONCATENATED:
        self.assertIsNotNone(group.previous)

  def test_identity_edits_change_nothing(self, name):
    model = make(name)
    edits = {tap: lambda x: x for tap in model.info.taps}
    edited = jax.jit(lambda s, x: model.features(s, x, edits=edits))
    expected = programs(name)[0](states(name)[0], batch(name))
    jax.tree.map(
      np.testing.assert_array_equal,
      edited(states(name)[0], batch(name)),
      expected,
    )

  def test_an_edit_is_put_in_where_it_says(self, name):
    model, state = make(name), states(name)[0]
    edits = {'penultimate': jnp.zeros_like}
    logits, _ = jax.jit(lambda s, x: model.apply(s, x, edits=edits))(
      state, batch(name)
    )
    bias = look_up(state.params, model.info.head_path)['bias']
    np.testing.assert_array_equal(logits, jnp.broadcast_to(bias, (8, 4)))

  def test_every_edit_reaches_the_logits(self, name):
    model, state, image = make(name), states(name)[0], batch(name)[:1]
    taps = model.info.taps

    def poisoned(place):
      edits = {
        tap: lambda a, i=i: jnp.where(place == i, jnp.nan, a)
        for i, tap in enumerate(taps)
      }
      return jnp.isnan(model.apply(state, image, edits=edits)[0]).all()

    places = jnp.arange(len(taps) + 1)
    reached = jax.jit(lambda i: jax.lax.map(poisoned, i))(places)
    np.testing.assert_array_equal(reached, places < len(taps))

  def test_unknown_edits_are_refused(self, name):
    with self.assertRaisesRegex(KeyError, "Did you mean 'logits'"):
      make(name).apply(
        states(name)[0], batch(name), edits={'logit': lambda x: x}
      )

  def test_vmap_equals_a_loop(self, name):
    features, train = programs(name)
    stack = tree.stack(states(name))
    run = lambda s, x: (features(s, x), train(s, x))
    stacked = jax.jit(jax.vmap(run, (0, None)))(stack, batch(name))
    for i, state in enumerate(states(name)):
      assert_close(tree.take(stacked, i), run(state, batch(name)))

  def test_jit_equals_eager(self, name):
    model, state = make(name), states(name)[0]
    logits, _ = model.apply(state, batch(name))
    assert_close(logits, programs(name)[0](state, batch(name))['logits'])

  def test_training_moves_running_statistics_only(self, name):
    model, state = make(name), states(name)[0]
    _, after = programs(name)[1](state, batch(name))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    self.assertIsNone(tree.describe_mismatch(after, state))
    moved = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()),
      after.batch_stats,
      state.batch_stats,
    )
    if moved:  # a network without BatchNorm has nothing to move
      self.assertGreater(min(jax.tree.leaves(moved)), 0)
    self.assertLen(jax.tree.leaves(moved), 2 * len(model.info.norm_paths))

  def test_inference_leaves_the_state(self, name):
    _, after = jax.jit(make(name).apply)(states(name)[0], batch(name))
    jax.tree.map(np.testing.assert_array_equal, after, states(name)[0])

  def test_training_features_use_batch_statistics(self, name):
    model = make(name)
    logits = jax.jit(lambda s, x: model.features(s, x, train=True)['logits'])(
      states(name)[0], batch(name)
    )
    expected, _ = programs(name)[1](states(name)[0], batch(name))
    assert_close(logits, expected)

  def test_initial_states(self, name):
    model = make(name)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    state = model.init(jax.random.key(0))
    self.assertIsNone(tree.describe_mismatch(abstract, state))
    for leaf in jax.tree.leaves(state):
      self.assertEqual((leaf.dtype, leaf.weak_type), (jnp.float32, False))
    jax.tree.map(
      np.testing.assert_array_equal, state, model.init(jax.random.key(0))
    )
    other = model.init(jax.random.key(1))
    gap = tree.norm(tree.subtract(state.params, other.params))
    self.assertGreater(float(gap), 0)

  def test_initial_states_of_a_stack(self, name):
    model = make(name)
    keys = jax.random.split(jax.random.key(0), 2)
    stack = jax.vmap(model.init)(keys)
    assert_close(tree.take(stack, 1), model.init(keys[1]), rtol=1e-6)

  def test_half_precision_is_that_of_activations_alone(self, name):
    half, kept = models.in_dtype(make(name), 'bfloat16'), make(name).init
    state = jax.eval_shape(kept, jax.random.key(0))
    seen = jax.eval_shape(half.features, state, batch(name))
    for tap in half.info.conv_taps:
      self.assertEqual(seen[tap].dtype, jnp.bfloat16, tap)
    self.assertEqual(seen['logits'].dtype, jnp.float32)

    def loss_fn(state):
      logits, after = half.apply(state, batch(name), train=True)
      return logits.sum(), after

    grads, after = jax.eval_shape(jax.grad(loss_fn, has_aux=True), state)
    for leaf in jax.tree.leaves((grads, after)):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_untyped_keys_are_refused(self, name):
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      make(name).init(jnp.zeros(2, jnp.uint32))


def cases(name, *networks):
  """A test case of the promises of some networks."""
  tests = {k: test for k, test in vars(Promises).items() if k[:4] == 'test'}
  case = type(name, (parameterized.TestCase,), tests)
  return parameterized.parameters(*networks)(case)


ModelsContractTest = cases('ModelsContractTest', *QUICK, 'nnx')
OtherModelsContractTest = pytest.mark.slow(
  cases('OtherModelsContractTest', *sorted(models.REGISTRY.keys() - {*QUICK}))
)
