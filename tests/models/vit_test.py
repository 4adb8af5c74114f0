import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from tests.models import nets

TINY = {'width': 8, 'depth': 1, 'heads': 2, 'image_size': 12, 'patch_size': 4}
LAYER = 'encoder_layers_encoder_layer_0_'


def resized(x, size):
  """Bilinear with half-pixel centers; the border goes on outside."""
  position = (np.arange(size) + 0.5) * x.shape[1] / size - 0.5
  position = np.clip(position, 0, x.shape[1] - 1)
  low = np.floor(position).astype(int)
  high = np.minimum(low + 1, x.shape[1] - 1)
  part = position - low
  part_rows, part_columns = part[None, :, None, None], part[None, None, :, None]
  x = x[:, low] * (1 - part_rows) + x[:, high] * part_rows
  return x[:, :, low] * (1 - part_columns) + x[:, :, high] * part_columns


def dense(x, params):
  return x @ np.asarray(params['kernel']) + np.asarray(params['bias'])


class ViTTest(parameterized.TestCase):
  def test_number_of_weights(self):
    self.assertEqual(nets.num_weights('vit_b_16', 1000), 86_567_656)

  def test_tokens_whatever_the_images_size(self):
    model = models.make('vit_b_16', nets.spec(64), depth=1)
    shape = 'encoder.layers.encoder_layer_0', 'conv_proj.in', 'conv_proj'
    self.assertEqual(nets.sides(model, *shape), [197, 224, 14])

  def test_there_is_neither_a_map_nor_a_batch_norm(self):
    info = models.make('vit_b_16', nets.spec(), **TINY).info
    self.assertNotIn('penultimate_map', info.taps)
    self.assertEqual((info.norm_paths, info.conv_taps), ((), ()))

  def test_images_are_normalized_and_resized(self):
    model = models.make('vit_b_16', nets.spec(5), **TINY)
    seen = nets.features(model, nets.lively(model), nets.images(5))
    spec = nets.spec(5)
    x = (seen['input'] - np.array(spec.mean)) / np.array(spec.std)
    nets.assert_close(seen['conv_proj.in'], resized(x, 12))

  def test_an_encoder_layer_written_out(self):
    model = models.make('vit_b_16', nets.spec(5), **TINY)
    state = nets.lively(model)
    p = state.params
    seen = nets.features(model, state, nets.images(5))
    patches = nets.conv(seen['conv_proj.in'], p['conv_proj']['kernel'], 4)
    patches = (patches + np.asarray(p['conv_proj']['bias'])).reshape(2, 9, 8)
    token = np.broadcast_to(np.asarray(p['class_token']), (2, 1, 8))
    x = np.concatenate([token, patches], 1) + np.asarray(
      p['encoder_pos_embedding']
    )
    nets.assert_close(seen['encoder.layers.encoder_layer_0.ln_1.in'], x)

    out = nets.layer_norm(x, p[LAYER + 'ln_1'])
    packed = dense(out, p[LAYER + 'self_attention_in_proj'])
    heads = []
    for i in (0, 4):
      query, key, value = (packed[:, :, j + i : j + i + 4] for j in (0, 8, 16))
      scores = np.exp(query @ key.transpose(0, 2, 1) / 2)
      heads.append(scores / scores.sum(-1, keepdims=True) @ value)
    out = np.concatenate(heads, -1)
    x = x + dense(out, p[LAYER + 'self_attention_out_proj'])
    out = dense(nets.layer_norm(x, p[LAYER + 'ln_2']), p[LAYER + 'mlp_0'])
    place = 'encoder.layers.encoder_layer_0'
    nets.assert_close(seen[f'{place}.mlp.0'], out)
    x = x + seen[f'{place}.mlp.3']
    nets.assert_close(seen[place], x)
    out = nets.layer_norm(x[:, 0], p['encoder_ln'])
    nets.assert_close(seen['penultimate'], out)
    nets.assert_close(seen['logits'], dense(out, p['head']))

  @parameterized.parameters((768, 12), (192, 3), (48, 1))
  def test_heads_follow_the_width(self, width, heads):
    options = TINY | {'width': width, 'heads': None}
    model = models.make('vit_b_16', nets.spec(), **options)
    state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.eval_shape(nets.images)
    program = str(jax.make_jaxpr(model.apply)(state, images))
    self.assertIn(f'f32[2,{heads},10,10]', program)  # weights of attention

  def test_initial_weights(self):
    model = models.make('vit_b_16', nets.spec(), width=64, depth=1)
    params = model.init(jax.random.key(0)).params
    kernel = lambda name: np.asarray(params[name]['kernel'])
    uniform = {
      LAYER + 'self_attention_in_proj': (6 / 256) ** 0.5,
      LAYER + 'self_attention_out_proj': 64**-0.5,
      LAYER + 'mlp_0': (6 / 320) ** 0.5,
      'head': 64**-0.5,
    }
    for name, bound in uniform.items():
      self.assertLessEqual(np.abs(kernel(name)).max(), bound * 1.0001)
      self.assertGreater(np.abs(kernel(name)).max(), 0.97 * bound)
    np.testing.assert_allclose(
      kernel('conv_proj').std(), (16 * 16 * 3) ** -0.5, rtol=0.03
    )
    np.testing.assert_allclose(
      params['encoder_pos_embedding'].std(), 0.02, rtol=0.05
    )
    np.testing.assert_allclose(
      params[LAYER + 'mlp_0']['bias'].std(), 1e-6, rtol=0.3
    )
    for leaf in (
      params['class_token'],
      params['conv_proj']['bias'],
      params[LAYER + 'self_attention_in_proj']['bias'],
      params[LAYER + 'self_attention_out_proj']['bias'],
    ):
      np.testing.assert_array_equal(leaf, 0)

  @parameterized.parameters(
    ({'width': 10, 'heads': 4}, '`width=10`.*4 attention heads'),
    ({'image_size': 30}, '`image_size=30`.*16'),
    ({'depth': 0}, 'depth=0'),
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      models.make('vit_b_16', nets.spec(), **options)
