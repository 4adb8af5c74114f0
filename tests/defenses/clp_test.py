"""CLP: its guarantees, bounds by hand, torch's numbers, messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, data, defenses, models, surgery, types
from bdjax.defenses.clp import channel_bounds
from tests import small_nets
from tests.defenses import pruning
from tests.reference import golden, torch_layout

NET = pruning.NET
WIDE = models.make('tiny', data.spec('synthetic'), width=16)


@functools.cache
def program(net):
  return jax.jit(
    lambda u, state: pruning.run(
      defenses.clp(net, defenses.ClpHParams(u=u)), state, {}
    )[0]
  )


def pruned(u, state=None, net=NET):
  return program(net)(u, pruning.model() if state is None else state)


def planted(layer: str, channel: int, factor: float = 100.0):
  """The wide model with one filter of a convolution multiplied."""
  state = WIDE.init(jax.random.key(0))
  kernel = state.params[layer]['kernel'].at[..., channel].multiply(factor)
  params = {**state.params, layer: {'kernel': kernel}}
  return types.ModelState(params=params, batch_stats=state.batch_stats)


class ClpTest(pruning.GuaranteesMixin, parameterized.TestCase):
  def outcome(self):
    return pruned(0.5)

  def test_bounds_are_singular_values_times_gains(self):
    state = pruning.model()
    bounds = channel_bounds(NET, state)
    self.assertEqual({n: b.shape for n, b in bounds.items()}, SHAPES)
    scales = pruning.norm_leaf(state, 'scale')
    variances = pruning.norm_leaf(state, 'var')
    for i in (1, 2):
      kernel = np.asarray(state.params[f'conv{i}']['kernel'], np.float64)
      for k, got in enumerate(bounds[f'bn{i}']):
        matrix = kernel[..., k].transpose(2, 0, 1).reshape(kernel.shape[2], 9)
        gain = abs(scales[f'bn{i}'][k]) / np.sqrt(variances[f'bn{i}'][k])
        want = np.linalg.norm(matrix, 2) * gain
        np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_sign_of_a_scale_is_immaterial(self):
    state = pruning.model()
    flipped = surgery.apply_channel_mask(
      NET, state, jax.tree.map(lambda m: -m, surgery.full_masks(NET, state))
    )
    chex.assert_trees_all_equal(
      channel_bounds(NET, state), channel_bounds(NET, flipped)
    )

  @parameterized.parameters(('conv1', 3), ('conv2', 17))
  def test_a_planted_filter_is_the_only_channel_pruned(self, layer, channel):
    state = planted(layer, channel)
    carry = pruned(3.5, state, WIDE)
    name = layer.replace('conv', 'bn')
    mask = np.asarray(carry.extra['masks'][name])
    np.testing.assert_array_equal(np.flatnonzero(mask == 0), [channel])
    self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 1)

  def test_reads_no_data_and_uses_no_randomness(self):
    (phase,) = defenses.clp(NET).phases
    self.assertEqual((phase.reads, phase.num_steps), ('none', 0))
    self.assertEqual(phase.num_epochs, 0)
    defense = defenses.clp(NET, defenses.ClpHParams(u=0.5))
    other, metrics = pruning.run(
      defense, pruning.model(), {}, key=jax.random.key(7)
    )
    self.assertEqual(metrics, {})
    chex.assert_trees_all_close(other, pruned(0.5), rtol=1e-6)

  def test_none_is_pruned_beyond_the_largest_possible_deviation(self):
    # (c − 1)/√c of the wider layer, c = 32, reached by a single outlier.
    for layer in ('conv1', 'conv2'):
      carry = pruned(31 / 32**0.5, planted(layer, 0, 1e4), WIDE)
      self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 0)

  def test_larger_u_prunes_a_subset(self):
    masks = [pruned(u).extra['masks'] for u in (0.0, 0.5, 1.0, 1.5)]
    counts = [int(surgery.num_pruned(m)) for m in masks]
    self.assertEqual(counts, sorted(counts, reverse=True))
    self.assertGreater(counts[0], counts[-1])
    for mild, harsh in zip(masks[1:], masks, strict=False):
      for name in mild:
        self.assertTrue(np.all(np.asarray(mild[name]) >= harsh[name]))

  def test_thresholds_are_a_batch_axis(self):
    values = jnp.asarray([0.5, 1.0, 2.0])
    state = pruning.model()
    stacked = jax.vmap(lambda u: program(NET)(u, state).extra['masks'])(values)
    for i, u in enumerate((0.5, 1.0, 2.0)):
      chex.assert_trees_all_equal(
        jax.tree.map(lambda m, i=i: m[i], stacked), pruned(u).extra['masks']
      )

  def test_negative_u_is_refused(self):
    with self.assertRaisesRegex(ValueError, '`u=-3.0` must not be negative'):
      defenses.clp(NET, defenses.ClpHParams(u=-3.0))

  def test_networks_without_norms_or_without_order_are_refused(self):
    with self.assertRaisesRegex(checks.Unsupported, 'no BatchNorm layer'):
      defenses.clp(small_nets.linear_net())
    with self.assertRaisesRegex(checks.Unsupported, 'its `previous`'):
      defenses.clp(small_nets.conv_net())


SHAPES = {'bn1': (4,), 'bn2': (8,)}


@functools.cache
def golden_state(kind: str) -> types.ModelState:
  """The reference model, as it is or with filters multiplied."""
  state = golden.state()
  if kind == 'plain':
    return state
  arrays = torch_layout.to_torch(state.params)
  planted = golden.arrays('clp', 'planted_')
  for tensor, i, factor in zip(
    *(planted[x] for x in ('tensor', 'filter', 'factor')), strict=True
  ):
    array = np.array(arrays[str(tensor)])
    array[i] *= factor
    arrays[str(tensor)] = array
  params = torch_layout.from_torch(arrays, state.params)
  return types.ModelState(params=params, batch_stats=state.batch_stats)


def torch_norm(name: str) -> str:
  """'stage1_0.bn1' -> 'layer1.0.bn1'."""
  return name.replace('stage', 'layer').replace('_', '.')


class ClpGoldenTest(parameterized.TestCase):
  """Bounds and masks of a real network, against the official code's."""

  def test_norms_are_paired_as_in_torchs_module_order(self):
    for group in golden.network().info.prune_graph:
      name = torch_norm('.'.join(group.norm))
      path = torch_layout.to_torch_name('/'.join((*group.previous, 'kernel')))
      want = str(golden.arrays('clp')[f'paired_conv/{name}'])
      self.assertEqual(path.removesuffix('.weight'), want)

  @parameterized.parameters('plain', 'planted')
  def test_bounds(self, kind):
    bounds = jax.jit(lambda s: channel_bounds(golden.network(), s))(
      golden_state(kind)
    )
    for name, got in bounds.items():
      want = golden.arrays('clp')[f'{kind}/sigma/{torch_norm(name)}']
      np.testing.assert_allclose(got, want, rtol=5e-6)

  @parameterized.parameters('plain', 'planted')
  def test_masks_at_all_thresholds(self, kind):
    bounds = channel_bounds(golden.network(), golden_state(kind))
    for u in golden.arrays('clp')['u_values']:
      masks = surgery.keep_inliers(bounds, float(u))
      for name, mask in masks.items():
        want = golden.arrays('clp')[f'{kind}/pruned_u{u:g}/{torch_norm(name)}']
        np.testing.assert_array_equal(1 - np.asarray(mask), want, name)
