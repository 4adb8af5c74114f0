"""NPD: its guarantees, its terms by hand, torch's numbers, its messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import defenses, existence, models, reactivation, training, types
from bdjax.defenses.npd import (
  default_tap,
  purifying_losses,
  triggered,
)
from tests.defenses import tuning
from tests.reference import golden

X = jnp.asarray(tuning.IMAGES, jnp.float32) / 255
MODEL = tuning.NET.init(tuning.KEY)
ZERO = jnp.zeros((), jnp.int32)
CLOCK = types.Clock(jax.random.key(3), ZERO, ZERO, 1, 1)


def hparams(**values):
  base = dict(epochs=2, warm_epochs=1, batch_size=tuning.NUM, eps=0.5)
  return defenses.NpdHParams(**base | values)


def finish(hp, model=MODEL):
  """The carry after all phases."""
  return tuning.run(defenses.npd(tuning.NET, hp), model)[0]


@functools.cache
def purified():
  return finish(hparams())


class NpdTest(parameterized.TestCase):
  def test_network_stays_bit_identical_and_the_polarizer_moves(self):
    chex.assert_trees_all_equal(purified().model, MODEL)
    start = models.polarizer().init((8, 8, 4))
    same = jax.tree.map(np.array_equal, start, purified().extra['polarizer'])
    self.assertFalse(any(jax.tree.leaves(same)))

  @parameterized.parameters(*models.FORMS)
  def test_polarizer_is_an_identity_at_the_start(self, form):
    hp = hparams(form=form, warm_lr=0.0, lr=0.0, warm_epochs=0, epochs=1)
    carry = finish(hp)
    net = defenses.npd(tuning.NET, hp).deploy(tuning.NET, carry.extra)
    got, _ = net.apply(carry.model, X)
    want, _ = tuning.NET.apply(MODEL, X)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)

  def test_warm_up_gathers_the_statistics_of_the_features(self):
    hp = hparams(warm_lr=0.0, lr=0.0, warm_epochs=3, epochs=1)
    stats = finish(hp).extra['polarizer'].batch_stats['part0']
    x = np.asarray(tuning.NET.features(MODEL, X)['conv2.in'], np.float64)
    flat = x.reshape(-1, 4)
    kept = 0.9**3
    np.testing.assert_allclose(
      stats['mean'], (1 - kept) * flat.mean(0), rtol=1e-4
    )
    want = kept + (1 - kept) * flat.var(0, ddof=1)
    np.testing.assert_allclose(stats['var'], want, rtol=1e-4)

  @parameterized.parameters((False, False), (True, True))
  def test_statistics_move_after_the_warm_up_if_asked(self, train_norm, moves):
    carry = finish(hparams(warm_epochs=0, epochs=1, train_norm=train_norm))
    mean = carry.extra['polarizer'].batch_stats['part0']['mean']
    self.assertEqual(bool(jnp.any(mean != 0)), moves)

  def test_target_is_never_the_label(self):
    logits = jnp.asarray([[5.0, 1.0, 2.0], [0.0, 1.0, -1.0], [3.0, 3.0, 3.0]])
    for label, want in ((0, [2, 1, 1]), (1, [0, 0, 0]), (2, [0, 1, 0])):
      got = training.runner_up(logits, jnp.full(3, label))
      np.testing.assert_array_equal(got, want)

  @parameterized.parameters(
    ('l2', 0.3, 'zero'),
    ('l2', 0.3, 'random'),
    ('linf', 0.2, 'bound'),
    ('l1', 1.0, 'bound'),
  )
  def test_triggers_stay_in_ball_and_box(self, norm, eps, start):
    hp = hparams(norm=norm, eps=eps, start=start, inner_steps=3)
    see = lambda images: tuning.NET.apply(MODEL, images)[0]
    batch = {'image': X, 'index': jnp.arange(tuning.NUM)}
    target = training.runner_up(see(X), jnp.asarray(tuning.LABELS))
    got = triggered(see, batch, target, hp, tuning.KEY)
    self.assertBetween(float(jnp.min(got)), 0, 1)
    self.assertBetween(float(jnp.max(got)), 0, 1)
    order = {'l2': 2, 'l1': 1, 'linf': np.inf}[norm]
    moved = np.asarray(got - X, np.float64).reshape(tuning.NUM, -1)
    lengths = np.linalg.norm(moved, order, axis=1)
    self.assertLessEqual(lengths.max(), eps + 1e-5)
    self.assertGreater(lengths.min(), 0.1 * eps)
    loss = lambda x: training.cross_entropy(see(x), target)
    self.assertLess(float(loss(got)), float(loss(X)))

  def test_four_terms_by_hand(self):
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.3001, 0.3999]])
    q = np.array([[0.5, 0.1, 0.4], [0.2, 0.6, 0.2]])
    got = purifying_losses(
      jnp.log(p),
      jnp.log(q),
      labels=jnp.array([0, 1]),
      predictions=jnp.array([0, 2]),
      target=jnp.array([1, 2]),
    )
    away = lambda *values: np.mean([-np.log(1.0001 - v) for v in values])
    want = (
      -np.mean(np.log([0.7, 0.3001])),
      -np.mean(np.log([0.5, 0.2])),
      away(0.4, 0.2),  # class 2 beats 1; of the tied 0 and 2 either
      away(0.1, 0.2),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_uniform_predictions(self):
    logits, labels = jnp.zeros((5, 4)), jnp.arange(5) % 4
    target = training.runner_up(logits, labels)
    terms = purifying_losses(logits, logits, labels, labels, target)
    np.testing.assert_allclose(terms[2:], -np.log(1.0001 - 0.25), rtol=1e-5)

  def test_without_triggered_terms_it_is_tuning_of_the_polarizer(self):
    zero = dict(recover_weight=0.0, boost_weight=0.0, target_weight=0.0)
    loose = finish(hparams(eps=0.5, **zero)).extra
    tight = finish(hparams(eps=0.1, **zero)).extra
    chex.assert_trees_all_equal(loose, tight)

  def test_is_on_the_clean_set_without_recipe(self):
    warm, purify = defenses.npd(tuning.NET).phases
    self.assertEqual((warm.num_epochs, purify.num_epochs), (5, 50))
    for phase in (warm, purify):
      self.assertEqual((phase.reads, phase.augment), ('clean', False))
      self.assertEqual((phase.batch_size, phase.drop_last), (128, False))
    (only,) = defenses.npd(tuning.NET, hparams(warm_epochs=0)).phases
    self.assertEqual(only.name, 'purify')

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(inner_steps=0), '`inner_steps=0` must be positive'),
    (dict(warm_epochs=-1), '`warm_epochs=-1` must not be negative'),
    (dict(target_weight=-0.1), '`target_weight=-0.1` must not be negative'),
    (dict(eps=-3.0), '`eps=-3.0` must not be negative'),
    (dict(eps=8.0, norm='linf'), 'write 8/255'),
    (dict(norm='l_2'), "Did you mean 'l2'"),
    (dict(form='only_conv'), "Did you mean 'onlyconv'"),
    (dict(start='zeros'), "Did you mean 'zero'"),
    (dict(tap='conv2_in'), "Did you mean 'conv2.in'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.npd(tuning.NET, defenses.NpdHParams(**values))

  def test_tap_must_hold_maps(self):
    with self.assertRaisesRegex(ValueError, 'needs maps'):
      finish(hparams(tap='penultimate'))

  def test_floats_are_leaves_and_counts_are_not(self):
    self.assertLen(jax.tree.leaves(defenses.NpdHParams()), 10)


class NpdTapTest(parameterized.TestCase):
  @parameterized.parameters(
    ('preactresnet18', dict(width=4), 32, 'stage4.1.conv1.in'),
    ('tiny', dict(), 8, 'conv2.in'),
  )
  def test_default_tap(self, arch, options, size, want):
    spec = types.DataSpec(
      name='toy',
      image_shape=(size, size, 3),
      num_classes=4,
      mean=(0.5,) * 3,
      std=(0.25,) * 3,
    )
    net = models.make(arch, spec, **options)
    self.assertEqual(default_tap(net), want)
    self.assertIn(want, net.info.taps)


class NpdDeployedTest(parameterized.TestCase):
  """The composition is a classifier like any other."""

  def deployed(self):
    return defenses.npd(tuning.NET, hparams()).deploy(
      tuning.NET, purified().extra
    )

  def test_features_edits_and_training_mode(self):
    net = self.deployed()
    layer = models.polarizer()
    x = tuning.NET.features(MODEL, X)['conv2.in']
    want, _ = layer.apply(purified().extra['polarizer'], x)
    seen = net.features(MODEL, X)
    np.testing.assert_allclose(seen['conv2.in'], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(net.apply(MODEL, X)[0], seen['logits'])
    cut = net.features(MODEL, X, edits={'conv2.in': lambda x: 0 * x})
    self.assertEqual(float(jnp.max(jnp.abs(cut['conv2']))), 0.0)
    _, after = net.apply(MODEL, X, train=True)
    self.assertEqual(after.batch_stats.keys(), MODEL.batch_stats.keys())

  def test_existence_is_measured_on_it(self):
    images = jnp.concatenate([X, X[:2] * 0.5])
    reference = existence.reference(tuning.NET, MODEL, images, images, images)
    # The polarizer stands behind 'conv1' and in front of 'conv2'.
    cka = existence.similarity(self.deployed(), reference, MODEL, images)
    np.testing.assert_allclose(cka[0], 1.0, rtol=1e-4)
    self.assertLess(float(cka[1]), 1 - 1e-5)

  def test_reactivation_runs_on_it(self):
    entry = reactivation.REGISTRY['white_box']
    hp = entry.hparams(eps=0.1, inner_steps=1, batch_size=tuning.NUM)
    phase = entry.make(self.deployed(), hp).phases[0]
    batch = {
      'image': X,
      'label': jnp.zeros(tuning.NUM, jnp.int32),
      'mask': jnp.ones(tuning.NUM, bool),
    }
    state = phase.init(tuning.KEY, types.Carry(model=MODEL, extra={}))
    _, metrics = phase.step(state, batch, CLOCK)
    plain = entry.make(tuning.NET, hp).phases[0]
    state = plain.init(tuning.KEY, types.Carry(model=MODEL, extra={}))
    _, other = plain.step(state, batch, CLOCK)
    self.assertNotEqual(float(metrics['loss']), float(other['loss']))


def polarizer_of(prefix):
  """Arrays of the fixture in this library's layout."""
  arrays = golden.arrays('npd', f'{prefix}/')
  return {
    'kernel': arrays['0.weight'][:, :, 0, 0].T,
    'scale': arrays['1.weight'],
    'bias': arrays['1.bias'],
  }


def golden_step():
  """What one step of the phase makes of the fixture's batch."""
  classifier, arrays = golden.network(), golden.arrays('npd')
  hp = defenses.NpdHParams(batch_size=16, warm_epochs=0)
  (phase,) = defenses.npd(classifier, hp).phases
  state = types.ModelState(
    params={'part0': polarizer_of('plug')},
    batch_stats={
      'part0': {
        'mean': arrays['plug/1.running_mean'],
        'var': arrays['plug/1.running_var'],
      }
    },
  )
  to64 = lambda x: jnp.asarray(x, jnp.float64)
  carry = types.Carry(
    model=golden.state(dtype=jnp.float64),
    extra={'polarizer': jax.tree.map(to64, state)},
  )
  batch = {
    'image': golden.images('npd'),
    'label': jnp.asarray(arrays['labels'], jnp.int32),
    'index': jnp.arange(16),
    'mask': jnp.ones(16, bool),
  }

  @golden.jit
  def run(carry, batch):
    start = phase.init(CLOCK.key, carry)
    after, metrics = phase.step(start, batch, CLOCK)
    net = defenses.npd(classifier, hp).deploy(classifier, carry.extra)
    see = lambda images: net.apply(carry.model, images)[0]
    logits = see(batch['image'])
    target = training.runner_up(logits, batch['label'])
    images = triggered(see, batch, target, hp, CLOCK.key)
    return {
      'before': start.trained,
      'after': after.trained,
      'momentum': after.opt_state,
      'loss': metrics['loss'],
      'logits': logits,
      'target': target,
      'logits_triggered': see(images),
      'images': images,
    }

  return run(carry, batch), batch


class NpdGoldenTest(parameterized.TestCase):
  """One step of phase B on a real network, in float64 as the fixture."""

  def test_step(self):
    want, close = golden.arrays('npd'), golden.assert_close
    with jax.enable_x64(True):
      got, batch = golden_step()
      terms = purifying_losses(
        got['logits'],
        got['logits_triggered'],
        batch['label'],
        jnp.argmax(got['logits'], -1),
        got['target'],
      )
      rival = training.runner_up(got['logits_triggered'], batch['label'])
    np.testing.assert_array_equal(got['target'], want['target_lab'])
    np.testing.assert_array_equal(rival, want['new_y'])
    close(got['logits'], want['logits_clean'], 1e-8)
    close(got['logits_triggered'], want['logits_adv'], 1e-6)
    clipped = np.clip(want['images_u8'] / 255 + want['delta_2'], 0, 1)
    close(got['images'], clipped, 1e-6)
    for i, term in enumerate(terms):
      close(term, want[f'loss_{i + 1}'], 1e-6)
    close(got['loss'], want['loss'], 1e-6)
    for name, delta in polarizer_of('plug_delta').items():
      moved = np.subtract(
        *(np.asarray(got[k]['part0'][name]) for k in ('after', 'before'))
      )
      close(moved, delta, 1e-4)
