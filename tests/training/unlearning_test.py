"""Tuning on mixed batches, and the rounds of inversion around it."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import keys, optim, training, types
from tests import small_nets

NET, KEY, NUM = small_nets.conv_net(), jax.random.key(0), 6
CLOCK = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 4, 4)


def sgd():
  return optim.sgd(optim.constant(1.0), momentum=0.5, weight_decay=0.0)


def brightness(model, extra, batch):
  """½ w² by the mean of the mixed batch; the statistics count the steps."""
  del extra
  mean = jnp.mean(batch['mixed'])
  loss = 0.5 * jnp.sum(model.params['w'] ** 2) * mean
  new = types.ModelState(params={}, batch_stats=model.batch_stats + 1)
  return loss, ({'replaced': jnp.sum(batch['mixed'] == 2)}, new)


def phase(share=0.2, name='unlearn', scale='scale'):
  def change(extra, images, key, index):
    del key, index
    return extra[scale] + jnp.zeros_like(images)

  return training.tune_mixed(
    change,
    brightness,
    sgd(),
    share=share,
    name=name,
    num_epochs=2,
    batch_size=NUM,
  )


def carry(**extra):
  model = types.ModelState(
    params={'w': jnp.array([1.0])}, batch_stats=jnp.int32(0)
  )
  return types.Carry(model=model, extra={'scale': jnp.float32(2.0), **extra})


def batch():
  return {
    'image': jnp.ones((NUM, 8, 8, 3)),
    'label': jnp.zeros(NUM, jnp.int32),
    'index': jnp.arange(NUM),
    'mask': jnp.ones(NUM, bool),
  }


class UnlearningTest(parameterized.TestCase):
  @parameterized.parameters((0.2, 2), (0.5, 4), (1.0, 6))
  def test_a_step_on_a_mixed_batch(self, share, replaced):
    """w ← w·(1 − mean), of which `replaced` images of 2 and the rest of 1."""
    made = phase(share)
    state, metrics = made.step(made.init(KEY, carry()), batch(), CLOCK)
    self.assertEqual(int(metrics['replaced']), replaced * 8 * 8 * 3)
    mean = 1 + replaced / NUM
    np.testing.assert_allclose(state.trained['w'], [1 - mean], rtol=1e-5)
    after = made.finish(state)
    self.assertEqual(int(after.model.batch_stats), 1)
    self.assertEqual(float(after.extra['scale']), 2.0)

  def test_a_change_knows_the_examples_and_the_step(self):
    def change(extra, images, key, index):
      del extra
      noise = jax.vmap(jax.random.uniform)(keys.per_example(key, index))
      return images + (index + noise)[:, None, None, None]

    def objective(model, extra, batch):
      loss, (_, new) = brightness(model, extra, batch)
      return loss, ({'added': batch['mixed'][:, 0, 0, 0] - 1}, new)

    made = training.tune_mixed(
      change, objective, sgd(), share=1.0, name='unlearn', batch_size=NUM
    )
    named = {**batch(), 'index': 10 * jnp.arange(NUM)}
    added = []
    for clock in (CLOCK, CLOCK, CLOCK._replace(key=jax.random.key(1))):
      _, metrics = made.step(made.init(KEY, carry()), named, clock)
      added.append(np.asarray(metrics['added']))
    whole = np.floor(added[0] + 1e-4)
    np.testing.assert_array_equal(whole, 10 * np.arange(NUM))
    self.assertLen(set(added[0] - whole), NUM)
    np.testing.assert_array_equal(added[0], added[1])
    self.assertFalse(np.allclose(added[0], added[2], atol=1e-2))

  def test_reads_augmented_clean_images_and_wraps_round(self):
    made = phase()
    self.assertEqual((made.reads, made.num_epochs), ('clean', 2))
    self.assertTrue(made.augment)
    self.assertFalse(made.drop_last)

  def test_alternates(self):
    hp = training.GeneratorHParams(batch_size=NUM, width=2, levels=1)
    numbers = []

    def unlearn(number):
      numbers.append(number)
      return phase(name=f'unlearn{number}')

    made = training.alternate(NET, hp, unlearn, 3)
    self.assertEqual(numbers, [1, 2, 3])
    want = ['pretrain', 'mask1', 'attack1', 'target1', 'unlearn1']
    want += ['mask2', 'attack2', 'unlearn2', 'mask3', 'attack3', 'unlearn3']
    self.assertEqual([p.name for p in made], want)
    # The optimizer goes from round to round; the last tidies up.
    found = dict(generator=jnp.ones(1), mask=jnp.ones(1), target=jnp.int32(1))
    now = carry(**found)
    for i, p in enumerate((made[4], made[7], made[10])):
      state = p.init(KEY, now)
      trace = float(state.opt_state[1].trace['w'][0])
      self.assertEqual(trace == 0.0, i == 0)
      state, _ = jax.jit(p.step)(state, batch(), CLOCK)
      now = p.finish(state)
    self.assertEqual(set(now.extra), set(found))

  def test_a_network_without_the_map_is_refused(self):
    hp = training.GeneratorHParams(levels=1)
    with self.assertRaisesRegex(ValueError, "no tap 'penultimate_map'"):
      training.alternate(small_nets.linear_net(), hp, lambda n: phase(), 1)
