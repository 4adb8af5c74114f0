import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import attacks, checks, eval, types
from bdjax.attacks import stored
from tests import small_nets

N, M, K = 12, 10, 3
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(256, size=(N, 4, 4, 3), dtype=np.uint8)
TEST = RNG.integers(256, size=(M, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(N) % K
TEST_LABELS = (np.arange(M) % K).astype(np.int32)
KNOWN = np.flatnonzero(TEST_LABELS != 1)
KIND = np.zeros(N, np.int8)
KIND[[2, 5]] = types.POISONED
KIND[7] = types.COVER


def _bank(images, index, labels) -> stored.Bank:
  return stored.Bank(np.asarray(index), 255 - images[index], np.asarray(labels))


def _attack(**changes) -> types.Attack:
  values = dict(
    info=types.AttackInfo(
      name='mine', label_mode='all2one', target_label=1, poison_ratio=0.2
    ),
    relabel=attacks.all2one(1, K),
    kind=KIND,
    train=_bank(TRAIN, [5, 2, 7], [1, 1, LABELS[7]]),
    test=_bank(TEST, KNOWN, np.ones(len(KNOWN), int)),
    test_images=TEST,
  )
  return stored.from_images(**(values | changes))


def _state(attack=None) -> types.AttackState:
  attack = attack or _attack()
  return attack.init(jax.random.key(0), TRAIN, LABELS)


def _float(images):
  return jnp.asarray(images, jnp.float32) / 255


def _stamp(images, index, attack=None):
  attack = attack or _attack()
  key = jax.random.key(1)
  return attack.stamp(_state(attack), images, key, jnp.asarray(index))


class StampTest(parameterized.TestCase):
  def test_images_are_looked_up(self):
    rows = KNOWN[[3, 0, 0]]
    found = _stamp(_float(TEST[rows]), rows)
    np.testing.assert_array_equal(found, _float(255 - TEST[rows]))

  def test_jit_finds_the_same(self):
    state, attack = _state(), _attack()
    found = jax.jit(lambda x, i: attack.stamp(state, x, None, i))(
      _float(TEST[KNOWN]), jnp.asarray(KNOWN)
    )
    np.testing.assert_array_equal(found, _float(255 - TEST[KNOWN]))

  @parameterized.named_parameters(
    ('training image', TRAIN[2:3], 2),
    ('other index', TEST[3:4], 5),
    ('changed', TEST[3:4] ^ 1, 3),
    ('target class', TEST[1:2], 1),
    ('beyond the set', TEST[3:4], M + 3),
  )
  def test_other_images_have_no_trigger(self, images, index):
    with self.assertRaisesRegex(
      checks.Unsupported, f"'mine' was imported.*given as {index}.*retuning"
    ):
      _stamp(_float(images), [index])
    attack, state = _attack(), _state()
    stamp = jax.jit(lambda x, i: attack.stamp(state, x, None, i))
    found = stamp(_float(images), jnp.asarray([index]))
    self.assertTrue(np.isnan(found).all())

  def test_images_that_differ_in_one_bit_are_others(self):
    attack, state = _attack(), _state()
    stamp = jax.jit(lambda x, i: attack.stamp(state, x, None, i))
    near = np.repeat(TEST[3:4], 48, 0).reshape(48, -1)
    near[np.arange(48), np.arange(48)] ^= 1
    found = stamp(_float(near.reshape(48, 4, 4, 3)), jnp.full(48, 3))
    self.assertTrue(np.isnan(found).all())

  def test_rates_count_exactly_the_stored_images(self):
    network = small_nets.linear_net(size=4, classes=K)
    attack = _attack()
    model, state = network.init(jax.random.key(0)), _state(attack)
    rates = eval.evaluate(
      network,
      model,
      TEST,
      TEST_LABELS,
      stamp=lambda x, key, index: attack.stamp(state, x, key, index),
      relabel=attack.relabel,
      key=jax.random.key(0),
    )
    logits, _ = network.apply(model, _float(255 - TEST[KNOWN]))
    wanted = np.mean(np.argmax(logits, 1) == 1)
    self.assertAlmostEqual(rates['asr'], wanted)
    self.assertEqual(rates['n_triggered_test'], len(KNOWN))
    self.assertTrue(rates['finite'])


class PoisonTest(parameterized.TestCase):
  def test_stored_images_are_put_where_they_were(self):
    index = np.array([7, 0, 5, 2, N + 1])
    images = np.concatenate([TRAIN[index[:-1]], TRAIN[:1]])
    labels = np.concatenate([LABELS[index[:-1]], LABELS[:1]])
    batch = {
      'image': _float(images),
      'label': jnp.asarray(labels, jnp.int32),
      'index': jnp.asarray(index),
    }
    found = _attack().poison(_state(), batch, jax.random.key(0))
    wanted = images.copy()
    for row in (0, 2, 3):
      wanted[row] = 255 - wanted[row]
    np.testing.assert_array_equal(found['image'], _float(wanted))
    np.testing.assert_array_equal(found['label'], [LABELS[7], 0, 1, 1, 0])
    np.testing.assert_array_equal(found['kind'], [2, 0, 1, 1, 0])
    self.assertEqual(found['label'].dtype, jnp.int32)

  def test_without_training_images(self):
    none = stored.Bank(*(x[:0] for x in _bank(TRAIN, [0], [0])))
    attack = _attack(train=none, kind=np.zeros(N, np.int8))
    with self.assertRaisesRegex(checks.Unsupported, 'No poisoned training'):
      attack.poison(_state(attack), {'index': jnp.arange(2)}, None)


class RefusalTest(parameterized.TestCase):
  def assert_refused(self, pattern, **changes):
    with self.assertRaisesRegex(ValueError, pattern):
      _attack(**changes)

  def test_marks_without_images(self):
    kind = KIND.copy()
    kind[9] = types.POISONED
    self.assert_refused('marks training image 9', kind=kind)

  def test_positions_outside(self):
    self.assert_refused('`test.index`.*to 9; there are 5', test_images=TEST[:5])

  def test_lengths_that_differ(self):
    bank = _bank(TEST, KNOWN, np.ones(len(KNOWN), int))
    self.assert_refused(
      '`test` has 7 images.* 6 labels',
      test=bank._replace(labels=bank.labels[1:]),
    )

  def test_other_shapes(self):
    self.assert_refused(
      r'\(4, 4, 3\).*shape \(3, 4, 3\)', test_images=TEST[:, :3]
    )

  def test_another_training_set(self):
    with self.assertRaisesRegex(ValueError, 'of 12 training images.*got 11'):
      _attack().init(jax.random.key(0), TRAIN[1:], LABELS[1:])
