import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx

from bdjax import models, registry, types
from bdjax.models import taps

SPEC = types.DataSpec(
  name='toy',
  image_shape=(8, 8, 3),
  num_classes=4,
  mean=(0.4, 0.5, 0.6),
  std=(0.2, 0.25, 0.3),
)


class Mean(nn.Module):
  """Logits that are the mean color: whatever surrounds it shows."""

  places: tuple[str, ...] = ('penultimate',)

  @nn.compact
  def __call__(self, x, tap, train):
    for place in self.places:
      x = tap(place, x)
    nn.Dense(1, name='head')(x)
    return x.mean((1, 2))


class MakeTest(parameterized.TestCase):
  def test_unknown_architecture_suggests_the_nearest(self):
    with self.assertRaisesRegex(registry.UnknownName, "mean 'preactresnet18'"):
      models.make('preact_resnet18', SPEC)

  def test_unknown_option_suggests_the_nearest(self):
    with self.assertRaisesRegex(registry.UnknownName, "mean 'width'"):
      models.make('tiny', SPEC, widht=8)

  def test_equal_arguments_give_the_same_object(self):
    self.assertIs(models.make('tiny', SPEC), models.make('tiny', SPEC))
    self.assertIsNot(
      models.make('tiny', SPEC), models.make('tiny', SPEC, width=4)
    )

  def test_width_must_be_positive(self):
    with self.assertRaisesRegex(ValueError, 'width=0'):
      models.make('tiny', SPEC, width=0)


class FromLinenTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = models.from_linen(Mean(), SPEC, arch='mean')
    self.state = self.model.init(jax.random.key(0))
    self.images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))

  def test_normalization_is_inside(self):
    logits, _ = self.model.apply(self.state, self.images)
    color = np.asarray(self.images).mean((1, 2))
    expected = (color - np.array([SPEC.mean])) / np.array([SPEC.std])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)

  def test_the_input_tap_is_in_pixel_space(self):
    features = self.model.features(self.state, self.images)
    np.testing.assert_array_equal(features['input'], self.images)
    edits = {'input': lambda x: jnp.clip(x + 0.1, 0, 1)}
    edited, _ = self.model.apply(self.state, self.images, edits=edits)
    moved, _ = self.model.apply(self.state, jnp.clip(self.images + 0.1, 0, 1))
    np.testing.assert_array_equal(edited, moved)

  def test_its_own_initializers_are_used(self):
    params = Mean().init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), taps.Taps(), False
    )['params']
    jax.tree.map(np.testing.assert_allclose, params, self.state.params)

  def test_byte_images_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'data.to_float'):
      self.model.apply(self.state, np.zeros((2, 8, 8, 3), np.uint8))

  def test_other_shapes_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'made for \[b, 8, 8, 3\]'):
      self.model.apply(self.state, jnp.zeros((2, 16, 16, 3)))

  def test_unknown_edit_suggests_the_nearest(self):
    edits = {'penultimat': lambda x: x}
    for call in (self.model.apply, self.model.features):
      with self.assertRaisesRegex(
        registry.UnknownName, "`edits` of 'mean'.*mean 'penultimate'"
      ):
        call(self.state, self.images, edits=edits)

  def test_edits_keep_shapes(self):
    with self.assertRaisesRegex(ValueError, "tap 'logits' turned"):
      self.model.apply(
        self.state, self.images, edits={'logits': lambda x: x[:, 0]}
      )

  def test_penultimate_is_required(self):
    with self.assertRaisesRegex(ValueError, "no tap 'penultimate'"):
      models.from_linen(Mean(places=('other',)), SPEC, arch='mean')

  @parameterized.parameters(
    ({'conv_taps': ('conv1',)}, "Unknown tap 'conv1' in `conv_taps`"),
    ({'head_path': ('linear',)}, "no 'linear' among head"),
    (
      {'prune_graph': (types.PruneGroup(('bn1',), None, 4),)},
      "no 'bn1' among head",
    ),
    (
      {'prune_graph': (types.PruneGroup(('head',), None, 4, ('conv9',)),)},
      "no 'conv9' among head",
    ),
    (
      {'prune_graph': (types.PruneGroup(('head',), None, 4, tap='bn9'),)},
      "Unknown tap 'bn9.in' in `prune_graph`",
    ),
  )
  def test_facts_must_name_what_is_there(self, facts, message):
    with self.assertRaisesRegex((KeyError, ValueError), message):
      models.from_linen(Mean(), SPEC, arch='mean', **facts)


class TapsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = models.make('tiny', SPEC, width=4)
    self.state = self.model.init(jax.random.key(0))
    self.images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))

  def test_through_names_input_and_output(self):
    tap = taps.Taps({'a.b': lambda x: x + 1})
    out = tap.within('a').through('b', lambda x, y: x * y, jnp.ones(2), 3)
    self.assertEqual(list(tap.seen), ['a.b.in', 'a.b'])
    np.testing.assert_array_equal(out, [4, 4])
    np.testing.assert_array_equal(tap.seen['a.b'], out)

  def test_nested_prefixes(self):
    tap = taps.Taps()
    tap.within('a').within('b')('c', jnp.ones(1))
    self.assertEqual(list(tap.seen), ['a.b.c'])

  def test_offsets_give_gradients_of_activations(self):
    # d logit_0 / d penultimate is the head's first column.
    kernel = self.state.params['head']['kernel']
    offset = jnp.zeros((2, kernel.shape[0]))

    def loss(offset):
      logits, _ = self.model.apply(
        self.state, self.images, edits={'penultimate': lambda a: a + offset}
      )
      return logits[:, 0].sum()

    grad = jax.grad(loss)(offset)
    np.testing.assert_allclose(
      grad, jnp.broadcast_to(kernel[:, 0], grad.shape), rtol=1e-6
    )

  def test_restricted_features(self):
    features = self.model.features(self.state, self.images, taps=('conv1',))
    self.assertCountEqual(features, ['conv1', 'penultimate', 'logits'])
    with self.assertRaisesRegex(registry.UnknownName, "mean 'conv1'"):
      self.model.features(self.state, self.images, taps=('conv1x',))

  def test_unused_features_are_free_under_jit(self):
    def flops(fn):
      return (
        jax.jit(fn)
        .lower(self.state, self.images)
        .compile()
        .cost_analysis()['flops']
      )

    features = self.model.features
    all_of_it = flops(lambda s, x: self.model.apply(s, x)[0])
    early = flops(lambda s, x: features(s, x)['conv1'])
    last = flops(lambda s, x: features(s, x)['logits'])
    self.assertLess(early, all_of_it / 2)
    np.testing.assert_allclose(last, all_of_it, rtol=1e-6)


class FromNnxTest(parameterized.TestCase):
  def test_random_layers_are_refused(self):
    class Net(nnx.Module):
      def __init__(self, rngs):
        self.head = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

      def __call__(self, x, tap):
        return self.head(self.dropout(tap('penultimate', x.mean((1, 2)))))

    with self.assertRaisesRegex(ValueError, 'random streams'):
      models.from_nnx(Net, SPEC, arch='net')
