"""--devices: one model trained over several devices, the same run."""

import numpy as np
from absl.testing import absltest

from configs.training import clean
from launch import cli, train
from tests.launch import toy


class DevicesTest(absltest.TestCase):
  def test_a_spread_run_is_the_run(self):
    config = clean.get_config('quick,epochs=2')
    made = []
    for num in (1, 2):
      context = cli.Context(toy.folder(f'devices{num}'), num_devices=num)
      with toy.compiled_once():
        artefact, _ = toy.quiet(train.main, config, context)
      made.append(artefact.card)
    one, two = made
    # How it was run is no part of a run's identity.
    self.assertEqual(one.run_id, two.run_id)
    np.testing.assert_allclose(
      one.metrics['c_acc'], two.metrics['c_acc'], atol=0.02
    )

  def test_more_than_there_are(self):
    context = cli.Context(toy.folder('devices9'), num_devices=9)
    with self.assertRaisesRegex(ValueError, 'devices=9.*there are 4.*1 … 4'):
      train.main(clean.get_config('quick'), context)
