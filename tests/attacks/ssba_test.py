"""SSBA: what is hidden comes through, the ramp by hand, assets that fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import attacks, keys, models, types
from bdjax.attacks.crafting import steganography, weights
from tests import toy
from tests.attacks import crafted

SMALL = dict(num_bits=4, width=2)
RAMP = dict(mse_weight=2.0, ramp_start=5, ramp_length=10)
SHORT = dict(epochs=1, batch_size=16, lr=1e-3, **RAMP)


@functools.cache
def assets():
  net = models.stegastamp(crafted.SPEC.image_shape, **SMALL)
  encoder = net.init(crafted.KEY)['encoder']
  return {
    'encoder': weights.flat(encoder),
    'fingerprint': np.array([0, 1, 1, 0]),
  }


def setup(given=None, **kwargs):
  hp = attacks.SsbaHParams(**SMALL | kwargs)
  attack = attacks.ssba(crafted.SPEC, hp, assets() if given is None else given)
  return attack, attack.init(crafted.KEY, crafted.IMAGES, crafted.LABELS)


@functools.cache
def toy_networks():
  """The toy world's networks, as its attack crafts them."""
  hp = attacks.SsbaHParams(**toy.HPARAMS['ssba'])
  net = models.stegastamp(
    (8, 8, 3), num_bits=hp.num_bits, width=hp.width, residual=hp.residual
  )
  return net, steganography.train(
    keys.stream(keys.root(0), 'networks'),
    net,
    toy.dataset().train.images,
    epochs=hp.craft_epochs,
    batch_size=hp.craft_batch_size,
    lr=hp.craft_lr,
    mse_weight=hp.mse_weight,
    ramp_start=hp.ramp_start,
    ramp_length=hp.ramp_length,
  )


class SsbaTest(parameterized.TestCase):
  def test_stamps_are_the_encoder_s_images_in_whole_levels(self):
    net = models.stegastamp(crafted.SPEC.image_shape, **SMALL)
    encoder = net.init(crafted.KEY)['encoder']
    bits = jnp.tile(jnp.array([[0.0, 1.0, 1.0, 0.0]]), (40, 1))
    want = net.hide(encoder, jnp.asarray(crafted.IMAGES) / 255, bits)
    got = crafted.stamp(*setup()).astype(float)
    # Half a level, and what float32 leaves open at ties.
    np.testing.assert_allclose(got, 255 * want, atol=0.501)

  def test_an_image_s_trigger_depends_on_the_image_alone(self):
    attack, state = setup()
    x = jnp.asarray(crafted.IMAGES[:6]) / 255
    first = attack.stamp(state, x, crafted.KEY, np.arange(6))
    other = attack.stamp(state, x[2:4], jax.random.key(9), np.array([31, 7]))
    np.testing.assert_allclose(other, first[2:4], atol=1.01 / 255)
    self.assertLess(np.mean(other != first[2:4]), 0.01)

  def test_other_images_get_other_changes(self):
    attack, state = setup()
    change = crafted.stamp(attack, state).astype(int) - crafted.IMAGES
    self.assertGreater(np.abs(change[0] - change[1]).max(), 5)

  def test_other_bits_other_images(self):
    first = crafted.stamp(*setup())
    other = assets() | {'fingerprint': np.array([1, 0, 0, 1])}
    self.assertFalse(np.array_equal(first, crafted.stamp(*setup(other))))

  @parameterized.parameters('all2one', 'all2all')
  def test_untouched_rows_are_bit_identical(self, mode):
    attack, state = setup(label_mode=mode, target_label=1, poison_ratio=0.25)
    data = crafted.batch()
    got = attack.poison(state, data, crafted.KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 10)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(got[name][~poisoned], data[name][~poisoned])
    want = 1 if mode == 'all2one' else (crafted.LABELS[poisoned] + 1) % 4
    np.testing.assert_array_equal(got['label'][poisoned], want)
    np.testing.assert_array_equal(
      np.round(255 * got['image'][poisoned]),
      crafted.stamp(attack, state)[poisoned],
    )

  def test_bad_values(self):
    with self.assertRaisesRegex(
      attacks.MissingAsset, "'encoder'.*CRAFTERS\\['ssba'\\].*may be None"
    ):
      setup({})
    with self.assertRaisesRegex(attacks.MissingAsset, "'fingerprint'"):
      setup({'encoder': assets()['encoder']})
    with self.assertRaisesRegex(KeyError, "Did you mean 'encoder'"):
      setup(assets() | {'encodr': 1})
    with self.assertRaisesRegex(ValueError, 'shape .* the network has'):
      setup(width=3)
    with self.assertRaisesRegex(ValueError, r'\(4,\).*`num_bits=5`.*per bit'):
      setup(num_bits=5)
    with self.assertRaisesRegex(ValueError, '`width=0` must be positive'):
      setup(width=0)


class CraftTest(parameterized.TestCase):
  @parameterized.parameters(
    (-1, 0.0), (0, 0.0), (1000, 0.0), (1300, 1.0), (4000, 10.0), (9999, 10.0)
  )
  def test_ramp_by_hand(self, since, want):
    got = steganography.ramp(since, 10.0, 1000, 3000)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_never_weighs_nothing_though_the_ramp_begins_at_once(self):
    self.assertEqual(float(steganography.ramp(-1, 10.0, 0, 1)), 0)
    self.assertEqual(float(steganography.ramp(1, 10.0, 0, 1)), 10)

  @pytest.mark.slow
  def test_the_clock_starts_when_the_bits_are_right(self):
    _, trained = toy_networks()
    curves = trained.curves
    hp = attacks.SsbaHParams(**toy.HPARAMS['ssba'])
    first = int(np.argmax(curves['bit_accuracy'] > 0.9))
    self.assertGreater(curves['bit_accuracy'][first], 0.9)
    since = np.arange(len(curves['loss'])) - first - 1
    risen = (since - hp.ramp_start) / hp.ramp_length
    want = hp.mse_weight * np.clip(risen, 0, 1) * (since >= 0)
    self.assertGreater(want[-1], 0)
    np.testing.assert_allclose(curves['mse_weight'], want, rtol=1e-5)

  @pytest.mark.slow
  def test_the_bits_can_be_read_from_stored_images(self):
    net, trained = toy_networks()
    self.assertGreaterEqual(trained.bit_accuracy, 0.95)
    made, attack = toy.assets('ssba'), toy.attack('ssba')
    # Trained by the same key: the decoder belongs to the attack's encoder.
    encoder = weights.flat(trained.params['encoder'])
    np.testing.assert_array_equal(made['encoder'], encoder)
    state = attack.init(crafted.KEY, *toy.dataset().train)
    images = toy.dataset().test.images[:200]
    stamped = crafted.stamp(attack, state, images)
    logits = net.reveal(trained.params['decoder'], jnp.asarray(stamped) / 255)
    read = np.asarray(logits) > 0
    self.assertGreater(np.mean(read == made['fingerprint'][None]), 0.95)
    clean = net.reveal(trained.params['decoder'], jnp.asarray(images) / 255)
    there = (np.asarray(clean) > 0) == made['fingerprint'][None]
    self.assertLess(np.mean(there.all(1)), 0.5)

  @pytest.mark.slow
  def test_figures_are_those_of_a_naive_twin(self):
    net, trained = toy_networks()
    images = toy.dataset().test.images[:200]
    got = steganography._judge(net, trained.params, images, crafted.KEY)
    bits = np.asarray(
      jax.random.bernoulli(crafted.KEY, 0.5, (200, net.num_bits))
    )
    x = images.astype(np.float32) / 255
    hidden = net.hide(
      trained.params['encoder'], jnp.asarray(x), jnp.asarray(bits, jnp.float32)
    )
    stored = np.round(255 * np.asarray(hidden)) / np.float32(255)
    logits = net.reveal(trained.params['decoder'], jnp.asarray(stored))
    np.testing.assert_allclose(got[0], np.mean((logits > 0) == bits), atol=1e-3)
    np.testing.assert_allclose(got[1], np.mean((stored - x) ** 2), rtol=1e-3)

  def test_too_few_bits_are_an_error(self):
    hp = attacks.SsbaHParams(**SMALL, craft_epochs=1)
    with self.assertRaisesRegex(
      ValueError, r'% of the bits.*`least_bit_accuracy=0.95`: raise `craft_ep'
    ):
      self.craft(hp)

  @pytest.mark.slow
  def test_takes_no_model_and_no_labels(self):
    hp = attacks.SsbaHParams(**SMALL, craft_epochs=1, least_bit_accuracy=0.0)
    self.assertEqual(attacks.CRAFTERS['ssba'].needs, 'images')
    made = self.craft(hp)
    shapes = {name: (a.shape, a.dtype.name) for name, a in made.items()}
    want = {name: (np.shape(a), a.dtype.name) for name, a in assets().items()}
    self.assertEqual(shapes['encoder'], want['encoder'])
    self.assertEqual(shapes['fingerprint'], ((4,), 'uint8'))
    setup(made)
    same = attacks.SsbaHParams(
      **SMALL, craft_epochs=1, least_bit_accuracy=0.0, target_label=2
    )
    jax.tree.map(np.testing.assert_array_equal, made, self.craft(same))
    other = self.craft(hp, jax.random.key(1))
    self.assertFalse(np.array_equal(made['encoder'], other['encoder']))

  def test_bad_lengths(self):
    net = models.stegastamp((8, 8, 3), **SMALL)
    train = functools.partial(
      steganography.train, crafted.KEY, net, crafted.IMAGES
    )
    for name in ('epochs', 'batch_size', 'lr', 'ramp_length'):
      with self.assertRaisesRegex(ValueError, f'`{name}=0` must be positive'):
        train(**SHORT | {name: 0})
    with self.assertRaisesRegex(ValueError, '`mse_weight=-1` must not be neg'):
      train(**SHORT | {'mse_weight': -1})

  def craft(self, hp, key=crafted.KEY):
    crafter = attacks.CRAFTERS['ssba']
    return crafter.craft(key, None, None, crafted.IMAGES, None, hp)
