import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from tests.models import nets


class WideResNetTest(parameterized.TestCase):
  def test_number_of_weights(self):
    self.assertEqual(nets.num_weights('wrn28_2', 10), 1_467_610)

  def test_convolutions_and_sizes(self):
    model = models.make('wrn28_2', nets.spec())
    self.assertLen(model.info.conv_taps, 24)
    self.assertEqual(model.info.conv_taps[-1], 'stage3.3.conv2')
    # Depth 28: stem, 24 convolutions and three projections, or the head.
    self.assertLen([t for t in model.info.taps if t.endswith('shortcut')], 3)
    sides = nets.sides(model, 'stem', 'stage1', 'stage2', 'stage3')
    self.assertEqual(sides, [32, 32, 16, 8])

  def test_prune_graph(self):
    info = models.make('wrn28_2', nets.spec()).info
    graph = {group.norm: group for group in info.prune_graph}
    self.assertLen(graph, 25)
    self.assertEqual(graph['stage1_0', 'bn1'].conv, ('stem',))
    for norm, previous in (
      (('stage1_1', 'bn1'), ('stage1_0', 'shortcut')),
      (('stage2_0', 'bn1'), ('stage1_3', 'conv2')),
      (('bn',), ('stage3_3', 'conv2')),
    ):
      self.assertIsNone(graph[norm].conv)
      self.assertEqual(graph[norm].previous, previous)
    self.assertEqual(
      [g.channels for g in info.prune_graph],
      [16] + [32] * 8 + [64] * 8 + [128] * 8,
    )

  def test_the_last_map_is_normalized_and_rectified(self):
    model = models.make('wrn28_2', nets.spec(8), width=2, blocks=1)
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images(8))
    stats = state.batch_stats['bn']
    out = nets.batch_norm(seen['stage3'], state.params['bn'], stats)
    nets.assert_close(seen['penultimate_map'], np.maximum(out, 0))
    pooled = seen['penultimate_map'].mean((1, 2))
    nets.assert_close(seen['penultimate'], pooled)

  def test_every_stage_projects_its_pre_activated_input(self):
    model = models.make('wrn28_2', nets.spec(8), width=2, blocks=1)
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images(8))
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
      active = np.maximum(seen[f'stage{stage}.0.bn1'], 0)
      kernel = state.params[f'stage{stage}_0']['shortcut']['kernel']
      short = nets.conv(active, kernel, stride)
      total = short + seen[f'stage{stage}.0.conv2']
      nets.assert_close(seen[f'stage{stage}'], total)

  def test_initial_weights(self):
    model = models.make('wrn28_2', nets.spec(), blocks=1)
    params = model.init(jax.random.key(0)).params
    kernel = params['stage3_0']['conv2']['kernel']
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 128)) ** 0.5, rtol=0.03)
    np.testing.assert_array_equal(params['head']['bias'], 0)
    self.assertLessEqual(np.abs(params['head']['kernel']).max(), 128**-0.5)
