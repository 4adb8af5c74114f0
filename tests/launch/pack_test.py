"""launch.pack: the models of launch.attack, made as one stack."""

import functools

import jax
import numpy as np
from absl.testing import absltest

from bdjax import zoo
from configs.attacks import badnets, pack
from launch import attack, cli, world
from launch import pack as launcher
from tests.launch import toy

RATIOS = (0.05, 0.1)
NAMES = ('badnets', 'blended')


def config(attacks='badnets+blended'):
  ratios = '+'.join(map(str, RATIOS))
  return pack.get_config(
    f'quick,epochs=2,num_train=200,attacks={attacks},ratios={ratios}'
  )


def run(given, context):
  with toy.compiled_once():
    return toy.quiet(launcher.main, given, context)


@functools.cache
def made():
  return run(config(), cli.Context(toy.folder('pack')))[0]


class PackTest(absltest.TestCase):
  def test_a_model_per_attack_and_ratio(self):
    found = [
      (artefact.card.method, artefact.card.attack['poison_ratio'])
      for artefact in made()
    ]
    self.assertEqual(found, [(n, ratio) for n in NAMES for ratio in RATIOS])
    for artefact in made():
      expected = round(200 * artefact.card.attack['poison_ratio'])
      self.assertEqual(artefact.card.attack['num_poison'], expected)

  def test_a_member_is_the_model_made_alone(self):
    alone = badnets.get_config('quick,epochs=2,num_train=200')
    alone.method.poison_ratio = RATIOS[1]
    context = cli.Context(toy.folder('pack-alone'))
    with toy.compiled_once():
      single, _ = toy.quiet(attack.main, alone, context)
    member = made()[1]
    self.assertEqual(member.card.run_id, single.card.run_id)
    net = world.of_config(alone, context).classifier
    abstract = {'model': jax.eval_shape(net.init, jax.random.key(0))}
    one, other = (
      zoo.load_state(a, abstract)['model'].params for a in (member, single)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
      one,
      other,
    )

  def test_records_share_the_time(self):
    records = zoo.records.read(cli.Context(toy.folder('pack')).records)
    self.assertLen(records, len(made()))
    for record in records:
      self.assertEqual((record['pack_size'], record['exec_mode']), (4, 'map'))
    self.assertLen({record['run_s'] for record in records}, 1)

  def test_finished_members_are_left_out(self):
    made()
    again, out = run(config(), cli.Context(toy.folder('pack')))
    self.assertEqual([a.name for a in again], [a.name for a in made()])
    self.assertEqual(out.count('finished before'), 4)

  def test_attacks_in_the_loop_are_refused(self):
    with self.assertRaisesRegex(ValueError, "'wanet' takes part"):
      run(config('badnets+wanet'), cli.Context(toy.folder('pack-wanet')))

  def test_devices_are_for_single_models(self):
    context = cli.Context(toy.folder('pack-devices'), num_devices=2)
    with self.assertRaisesRegex(ValueError, 'exec.mode=shard'):
      run(config(), context)
