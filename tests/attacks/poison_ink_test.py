"""PoisonInk: ink on edges alone, two streams by hand, changes in training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import attacks, data, keys, models, training, types
from bdjax.attacks.crafting import ink, weights
from tests import toy
from tests.attacks import crafted
from tests.eval import linear

SMALL = dict(width=2, reveal_width=2)
SHORT = dict(stages=('none',), craft_epochs=1, craft_batch_size=16)


@functools.cache
def network():
  return models.ink_networks(crafted.SPEC.image_shape, **SMALL)


@functools.cache
def assets():
  """A hiding network with weights large enough to be seen."""
  params = network().init(crafted.KEY)['hide']
  params = jax.tree.map(lambda x: 10 * x if x.ndim == 4 else x, params)
  return {
    'hider': weights.flat({'params': params, 'stats': network().init_stats()})
  }


def setup(given=None, spec=crafted.SPEC, **kwargs):
  hp = attacks.PoisonInkHParams(**SMALL | kwargs)
  attack = attacks.poison_ink(spec, hp, assets() if given is None else given)
  return attack, attack.init(crafted.KEY, crafted.IMAGES, crafted.LABELS)


def with_head(state, bias):
  """The state whose hiding network returns one number everywhere."""
  hider = state.trigger['hider']
  head = {
    'kernel': jnp.zeros_like(hider['params']['head']['kernel']),
    'bias': jnp.full(3, bias),
  }
  params = hider['params'] | {'head': head}
  trigger = state.trigger | {'hider': hider | {'params': params}}
  return dataclasses.replace(state, trigger=trigger)


@functools.cache
def toy_networks() -> ink.Trained:
  """The toy world's networks, as its attack crafts them."""
  hp = attacks.PoisonInkHParams(**toy.HPARAMS['poison_ink'])
  net = models.ink_networks(
    (8, 8, 3), width=hp.width, reveal_width=hp.reveal_width
  )
  return ink.train(
    keys.stream(keys.root(0), 'networks'),
    net,
    toy.dataset().train.images,
    color=hp.ink,
    edge_level=hp.edge_level,
    stages=hp.stages,
    epochs=hp.craft_epochs,
    batch_size=hp.craft_batch_size,
    lr=hp.craft_lr,
    decay_epochs=hp.decay_epochs,
  )


class PoisonInkTest(parameterized.TestCase):
  # Rounded half to even, then clipped.
  @parameterized.parameters((0.25, 64), (0.1, 26), (-3.0, 0), (3.0, 255))
  def test_stamps_are_clipped_and_rounded(self, bias, want):
    attack, state = setup()
    got = crafted.stamp(attack, with_head(state, bias))
    np.testing.assert_array_equal(got, want)

  def test_an_image_s_trigger_depends_on_the_image_alone(self):
    attack, state = setup()
    x = jnp.asarray(crafted.IMAGES[:6]) / 255
    first = attack.stamp(state, x, crafted.KEY, np.arange(6))
    other = attack.stamp(state, x[2:4], jax.random.key(9), np.array([31, 7]))
    np.testing.assert_allclose(other, first[2:4], atol=1.01 / 255)
    self.assertLess(np.mean(other != first[2:4]), 0.01)

  def test_images_without_edges_get_no_ink(self):
    flat = np.full((2, 8, 8, 3), 90, np.uint8)
    dark, bright = (setup(ink=(level,) * 3) for level in (0, 255))
    np.testing.assert_array_equal(
      crafted.stamp(*dark, flat), crafted.stamp(*bright, flat)
    )
    flat[:, :, 4:] = 160
    ink_matters = crafted.stamp(*dark, flat) != crafted.stamp(*bright, flat)
    self.assertTrue(ink_matters.any())
    # 255 is the white of what is no edge.
    no_edges = setup(ink=(0, 0, 0), edge_level=255.0)
    np.testing.assert_array_equal(
      crafted.stamp(*no_edges, flat), crafted.stamp(*bright, flat)
    )

  @parameterized.parameters('all2one', 'all2all')
  def test_untouched_rows_are_bit_identical(self, mode):
    attack, state = setup(label_mode=mode, target_label=1, poison_ratio=0.25)
    batch = crafted.batch()
    got = attack.poison(state, batch, crafted.KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 10)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(
        got[name][~poisoned], batch[name][~poisoned]
      )
      np.testing.assert_array_equal(got[f'clean_{name}'], batch[name])
    want = 1 if mode == 'all2one' else (crafted.LABELS[poisoned] + 1) % 4
    np.testing.assert_array_equal(got['label'][poisoned], want)
    np.testing.assert_array_equal(
      np.round(255 * got['image'][poisoned]),
      crafted.stamp(attack, state)[poisoned],
    )

  def test_both_streams_weigh_the_same(self):
    spec = dataclasses.replace(crafted.SPEC, crop_padding=2)
    attack, state = setup(spec=spec)
    net = linear.classifier(spec)
    model = net.init(crafted.KEY)
    batch = jax.jit(attack.poison)(state, crafted.batch(), crafted.KEY)
    key = jax.random.key(5)
    objective = jax.jit(attack.objective, static_argnums=1)
    loss, (logits, after) = objective(state, net, model, batch, key)
    own = keys.per_example(key, batch['index'])
    clean = data.augment_fn(spec)(crafted.batch()['image'], own)
    self.assertFalse(np.array_equal(clean, crafted.batch()['image']))
    predict = lambda x: net.apply(model, x)[0]
    want = (
      training.cross_entropy(predict(clean), batch['clean_label'])
      + training.cross_entropy(predict(batch['image']), batch['label'])
    ) / 2
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(logits, predict(batch['image']), rtol=1e-5)
    self.assertEqual(float(after.batch_stats['passes']), 1)
    # The loop leaves the poisoned stream as it is.
    assert attack.augment is not None
    np.testing.assert_array_equal(attack.augment(clean, own), clean)

  def test_one_stream_is_plain_poisoning(self):
    attack, state = setup(two_streams=False)
    self.assertIsNone(attack.augment)
    batch = attack.poison(state, crafted.batch(), crafted.KEY)
    self.assertNotIn('clean_image', batch)
    net = linear.classifier(crafted.SPEC)
    model = net.init(crafted.KEY)
    loss, _ = attack.objective(state, net, model, batch, crafted.KEY)
    logits, _ = net.apply(model, batch['image'])
    want = training.cross_entropy(logits, batch['label'])
    np.testing.assert_allclose(loss, want, rtol=1e-6)

  def test_bad_values(self):
    with self.assertRaisesRegex(
      attacks.MissingAsset, "'hider'.*CRAFTERS\\['poison_ink'\\].*may be None"
    ):
      setup({})
    with self.assertRaisesRegex(KeyError, "Did you mean 'hider'"):
      setup({'hidr': 1})
    with self.assertRaisesRegex(ValueError, 'the network has .* weights'):
      setup(width=3)
    for color in ((1, 2), (80, 160, 256)):
      with self.assertRaisesRegex(ValueError, '0 … 255 for each channel'):
        setup(ink=color)
    with self.assertRaisesRegex(ValueError, '`edge_level=-1.* not be neg'):
      setup(edge_level=-1.0)


class CraftTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_learns_to_hide_and_to_reveal(self):
    trained = toy_networks()
    curves = trained.curves['none']
    self.assertLess(np.mean(curves['loss'][-9:]), curves['loss'][0] / 10)
    self.assertGreater(trained.psnr, 12)  # rounding moves it by 3 dB
    # Ten epochs tell edges from the rest (0.44 after one), hardly their color:
    # rounding moves this error from 0.16 to 0.24.
    self.assertLess(trained.edge_error, 0.3)
    self.assertLess(trained.clean_error, 0.1)

  @pytest.mark.slow
  def test_what_the_toy_s_attack_is_made_of(self):
    trained = toy_networks()
    hider = {'params': trained.params['hide'], 'stats': trained.stats}
    made = toy.assets('poison_ink')
    np.testing.assert_array_equal(made['hider'], weights.flat(hider))

  def test_errors_by_hand(self):
    x = np.full((1, 4, 8, 3), 0.2, np.float32)
    x[:, :, 4:] = 0.8
    color = jnp.asarray([[0.5, 0.25, 0.0]])
    inked, clean = np.full_like(x, 0.5), np.full_like(x, 0.75)
    got = ink._revealed_errors(
      (jnp.asarray(inked), jnp.asarray(clean)), jnp.asarray(x), color, 28.0
    )
    np.testing.assert_allclose(got['edge'], (0.25**2 + 0.5**2) / 3, rtol=1e-5)
    np.testing.assert_allclose(got['back'], 0.25, rtol=1e-5)
    np.testing.assert_allclose(got['clean'], 0.0625, rtol=1e-5)
    flat = ink._revealed_errors(
      (jnp.asarray(inked), jnp.asarray(clean)),
      jnp.full_like(x, 0.3),
      color,
      28.0,
    )
    self.assertEqual(float(flat['edge']), 0)

  @parameterized.parameters(*ink.CHANGES)
  def test_container_and_cover_change_alike(self, stage):
    x = jnp.asarray(crafted.IMAGES[:8]) / 255
    change = ink._change(stage, (8, 8, 3))
    both = change(jnp.concatenate([x, x]), crafted.KEY)
    np.testing.assert_array_equal(both[:8], both[8:])
    moved = np.asarray(jnp.any(both[:8] != x, axis=(1, 2, 3)))
    if stage == 'none':
      self.assertFalse(moved.any())
    else:
      self.assertBetween(moved.sum(), 1, 7)
    if stage == 'flip':
      np.testing.assert_array_equal(both[:8][moved], x[moved][:, :, ::-1])

  def test_crops_are_enlarged_as_torch_does(self):
    at, room = ink._enlarged(32)
    self.assertEqual((len(at), room), (32, 4))
    np.testing.assert_allclose(at[:3], [0, 0.8125, 1.6875])
    np.testing.assert_allclose(at[-3:], [25.3125, 26.1875, 27])
    self.assertEqual(ink._enlarged(8)[1], 1)

  @pytest.mark.slow
  def test_takes_no_model_and_no_labels(self):
    hp = attacks.PoisonInkHParams(**SMALL, **SHORT)
    crafter = attacks.CRAFTERS['poison_ink']
    self.assertEqual(crafter.needs, 'images')

    def craft(hp, key=crafted.KEY):
      return crafter.craft(key, None, None, crafted.IMAGES, None, hp)['hider']

    made = craft(hp)
    self.assertEqual(made.shape, assets()['hider'].shape)
    setup({'hider': made})
    same = dataclasses.replace(hp, poison_ratio=0.5, two_streams=False)
    np.testing.assert_array_equal(made, craft(same))
    self.assertFalse(np.array_equal(made, craft(hp, jax.random.key(1))))

  @parameterized.parameters(
    (dict(craft_epochs=0), '`epochs=0` must be positive'),
    (dict(craft_lr=0.0), '`lr=0.0` must be positive'),
    (dict(stages=('rotate',)), 'not allowed. .*Known: crop, flip, none'),
    (dict(ink=(1,)), r'`ink=\(1,\)` is no color of images of shape'),
  )
  def test_bad_crafting(self, values, message):
    hp = attacks.PoisonInkHParams(**SMALL | SHORT | values)
    crafter = attacks.CRAFTERS['poison_ink']
    with self.assertRaisesRegex(ValueError, message):
      crafter.craft(crafted.KEY, None, None, crafted.IMAGES, None, hp)
