from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from flax import linen as nn
from jax import lax

from bdjax import models
from bdjax.models import conv, conv_forms, winograd

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# name, images, kernel, stride, padding, groups
CASES = (
  ('3x3', (2, 6, 6, 3), (3, 3, 3, 4), 1, 1, 1),
  ('3x3_stride2_even', (2, 6, 6, 3), (3, 3, 3, 4), 2, 1, 1),
  ('3x3_stride2_odd', (2, 7, 5, 3), (3, 3, 3, 4), 2, 1, 1),
  ('1x1', (2, 4, 4, 3), (1, 1, 3, 4), 1, 0, 1),
  ('1x1_stride2_even', (2, 6, 6, 3), (1, 1, 3, 4), 2, 0, 1),
  ('1x1_stride2_odd', (2, 5, 5, 3), (1, 1, 3, 4), 2, 0, 1),
  ('1x1_grouped', (2, 6, 6, 4), (1, 1, 2, 6), 2, 0, 2),
  ('5x5', (2, 6, 6, 2), (5, 5, 2, 3), 1, 2, 1),
  ('depthwise', (2, 5, 5, 3), (3, 3, 1, 3), 1, 1, 3),
  ('depthwise_stride2', (2, 6, 6, 3), (3, 3, 1, 6), 2, 1, 3),
  ('depthwise_5x5_stride2', (2, 7, 6, 3), (5, 5, 1, 3), 2, 2, 3),
  ('depthwise_one_pixel', (2, 1, 1, 3), (7, 7, 1, 3), 1, 3, 3),
  ('grouped', (2, 5, 5, 4), (3, 3, 2, 6), 1, 1, 2),
  ('patches', (2, 8, 8, 3), (4, 4, 3, 5), 4, 0, 1),
  ('patches_with_rest', (2, 7, 9, 3), (4, 4, 3, 5), 4, 0, 1),
  ('smaller_than_its_kernel', (2, 2, 2, 3), (3, 3, 3, 4), 1, 1, 1),
  ('one_pixel', (2, 1, 1, 3), (3, 3, 3, 4), 1, 1, 1),
  ('stride2_to_one_pixel', (2, 2, 2, 3), (3, 3, 3, 4), 2, 1, 1),
  ('row_of_pixels', (2, 1, 6, 3), (3, 3, 3, 4), 1, 1, 1),
)


def convolve(fn, x, kernel, stride, padding, groups, **kwargs):
  return fn(
    x,
    kernel,
    (stride, stride),
    ((padding, padding),) * 2,
    dimension_numbers=LAYOUT,
    feature_group_count=groups,
    **kwargs,
  )


def arrays(x_shape, kernel_shape, dtype=np.float64, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=shape), dtype)
    for shape in (x_shape, kernel_shape, x_shape, kernel_shape)
  )


def both(**how):
  """A function that convolves by this module, and one that does by lax."""
  for fn in (conv.conv_general_dilated, lax.conv_general_dilated):
    yield lambda x, kernel, fn=fn: convolve(fn, x, kernel, **how)


def derivatives(fn):
  """Value, gradient and reverse-over-reverse Hessian-vector product."""

  def loss(x, kernel):
    return jnp.sum(jnp.sin(fn(x, kernel)))

  def slope(x, kernel, u, v):
    dx, dk = jax.grad(loss, (0, 1))(x, kernel)
    return jnp.sum(dx * u) + jnp.sum(dk * v)

  def run(x, kernel, u, v):
    first = jax.value_and_grad(loss, (0, 1))(x, kernel)
    return first, jax.grad(slope, (0, 1))(x, kernel, u, v)

  return run


def scanned(fn):
  """The same function inside of a scan of two equal steps."""

  def run(*args):
    def body(carry, _):
      return carry, fn(*carry)

    return lax.scan(body, args, None, length=2)[1]

  return run


def assert_trees_close(a, b, rtol=1e-11):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=rtol, atol=rtol * np.abs(y).max()
    ),
    a,
    b,
  )


class ConvTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(conv.fast_gradients())

  @parameterized.named_parameters(*CASES)
  def test_equals_autodiff_to_second_order(self, *case):
    self.check_to_second_order(*case)

  def check_to_second_order(self, x, k, stride, padding, groups):
    with jax.enable_x64(True):
      own, plain = both(stride=stride, padding=padding, groups=groups)
      args = arrays(x, k)
      ours, theirs = jax.jit(
        lambda *args: (derivatives(own)(*args), derivatives(plain)(*args))
      )(*args)
      assert_trees_close(ours, theirs)

  @parameterized.named_parameters(CASES[0], CASES[1], CASES[2], CASES[13])
  def test_forms_for_much_work_to_second_order(self, *case):
    for name in ('_PAIRS', '_GRADIENT_PAIRS', '_PRODUCTS'):
      self.enter_context(mock.patch.object(winograd, name, 0))
    self.enter_context(mock.patch.object(conv_forms, '_PHASED', 1))
    self.check_to_second_order(*case)

  @parameterized.named_parameters(CASES[1], CASES[8], CASES[10], CASES[12])
  def test_equals_autodiff_inside_a_scan(self, x, k, stride, padding, groups):
    with jax.enable_x64(True):
      own, plain = both(stride=stride, padding=padding, groups=groups)
      args = arrays(x, k)
      ours, theirs = jax.jit(
        lambda *args: (
          scanned(derivatives(own))(*args),
          derivatives(plain)(*args),
        )
      )(*args)
      for step in (0, 1):
        assert_trees_close(jax.tree.map(lambda a, i=step: a[i], ours), theirs)

  @parameterized.named_parameters(CASES[0], CASES[1])
  def test_the_batch_in_pieces(self, x, k, stride, padding, groups):
    # Room for the copies of one image alone.
    self.enter_context(mock.patch.object(conv_forms, '_CACHE', 2000))
    with jax.enable_x64(True):
      own, plain = both(stride=stride, padding=padding, groups=groups)
      args = arrays((6, *x[1:]), k)
      fns = derivatives(own), derivatives(plain)
      self.assertIn('scan', str(jax.make_jaxpr(fns[0])(*args)))
      ours, theirs = jax.jit(lambda *args: [fn(*args) for fn in fns])(*args)
      assert_trees_close(ours, theirs)

  def test_depthwise_sums_of_half_precision_are_in_single(self):
    own, _ = both(stride=1, padding=0, groups=2)
    x = jnp.ones((512, 3, 3, 2), jnp.bfloat16)
    k = jnp.ones((3, 3, 1, 2), jnp.bfloat16)
    value, grad = jax.value_and_grad(
      lambda k: own(x, k).astype(jnp.float32).sum()
    )(k)
    self.assertEqual(value, 512 * 2 * 9)
    np.testing.assert_array_equal(
      grad.astype(np.float32), np.full(k.shape, 512)
    )

  def test_pieces_of_half_precision_sum_in_single(self):
    # Each image adds 1; beyond 256, bfloat16 would no longer notice.
    self.enter_context(mock.patch.object(conv_forms, '_CACHE', 1))
    own, _ = both(stride=1, padding=0, groups=1)
    x = jnp.ones((512, 2, 2, 1), jnp.bfloat16)
    k = jnp.zeros((2, 2, 1, 1), jnp.bfloat16)
    grad = jax.grad(lambda k: own(x, k).sum().astype(jnp.float32))(k)
    np.testing.assert_array_equal(
      grad.astype(np.float32), np.full(k.shape, 512)
    )

  @parameterized.product(
    axes=((0, 0), (0, None), (None, 0)), case=(CASES[10], CASES[12])
  )
  def test_vmap_equals_a_loop(self, axes, case):
    m, (_, x_shape, k_shape, stride, padding, groups) = 3, case
    x_axis, kernel_axis = axes
    with jax.enable_x64(True):
      own, _ = both(stride=stride, padding=padding, groups=groups)
      grow = lambda axis, shape: (m, *shape) if axis == 0 else shape
      x, k, u, v = arrays(grow(x_axis, x_shape), grow(kernel_axis, k_shape))
      axes = (x_axis, kernel_axis) * 2
      stacked = jax.jit(jax.vmap(derivatives(own), axes))(x, k, u, v)
      one = jax.jit(derivatives(own))
      for i in range(m):
        member = [
          a[i] if axis == 0 else a
          for a, axis in zip((x, k, u, v), axes, strict=True)
        ]
        assert_trees_close(
          jax.tree.map(lambda a, i=i: a[i], stacked), one(*member)
        )

  @parameterized.parameters(((3, 2, 2, 3), 1), ((3, 2, 1, 2), 2))
  def test_dilated_convolutions(self, kernel_shape, groups):
    with jax.enable_x64(True):
      x, k, u, v = arrays((2, 9, 8, 2), kernel_shape)

      def by(fn):
        return lambda x, k: fn(
          x, k, (2, 1), ((2, 0), (1, 3)), (1, 2), (2, 3), LAYOUT, groups
        )

      ours = jax.jit(derivatives(by(conv.conv_general_dilated)))(x, k, u, v)
      theirs = jax.jit(derivatives(by(lax.conv_general_dilated)))(x, k, u, v)
      assert_trees_close(ours, theirs)

  @parameterized.named_parameters(*CASES)
  def test_all_convolutions_have_the_plain_layout(
    self, x, k, stride, padding, groups
  ):
    # What makes gradients slow in loops on CPU is permuted axes.
    own, plain = both(stride=stride, padding=padding, groups=groups)
    args = arrays(x, k, np.float32)
    self.assertLessEqual(layouts(derivatives(own), args), {plain_layout()})
    self.assertNotEqual(layouts(derivatives(plain), args), {plain_layout()})

  @parameterized.parameters('SAME', 'VALID')
  def test_padding_by_name(self, padding):
    x, k, *_ = arrays((2, 5, 6, 3), (3, 3, 3, 4), np.float32)
    args = (x, k, (2, 2), padding)
    ours = conv.conv_general_dilated(*args, dimension_numbers=LAYOUT)
    theirs = lax.conv_general_dilated(*args, dimension_numbers=LAYOUT)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

  def test_other_layouts_go_to_lax(self):
    x, k, *_ = arrays((2, 3, 5, 5), (4, 3, 3, 3), np.float32)
    args = (x, k, (1, 1), 'SAME')
    np.testing.assert_array_equal(
      conv.conv_general_dilated(*args), lax.conv_general_dilated(*args)
    )

  def test_drop_in_for_linen(self):
    own = nn.Conv(4, (3, 3), conv_general_dilated=conv.conv_general_dilated)
    plain = nn.Conv(4, (3, 3))
    x, kernel, *_ = arrays((2, 5, 5, 3), (3, 3, 3, 4), np.float32)
    params = {'params': {'kernel': kernel, 'bias': jnp.ones(4)}}

    def grads(layer):
      fn = jax.grad(lambda p, x: jnp.sum(layer.apply(p, x) ** 2), (0, 1))
      return jax.jit(fn)(params, x)

    assert_trees_close(grads(own), grads(plain), rtol=1e-5)


class ForwardModeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(conv.fast_gradients())
    self.x, self.k, self.u, self.v = arrays(
      (2, 6, 6, 3), (3, 3, 3, 4), np.float32
    )
    self.own, self.plain = both(stride=2, padding=1, groups=1)

  def test_is_refused_outside_of_the_context(self):
    with self.assertRaisesRegex(TypeError, 'forward-mode'):
      jax.jvp(self.own, (self.x, self.k), (self.u, self.v))

  def test_jvp(self):
    with models.forward_mode():
      out = jax.jvp(self.own, (self.x, self.k), (self.u, self.v))
    expected = jax.jvp(self.plain, (self.x, self.k), (self.u, self.v))
    assert_trees_close(out, expected, rtol=1e-6)

  def test_jvp_of_a_depthwise_convolution(self):
    own, plain = both(stride=1, padding=3, groups=3)
    x, k, u, v = arrays((2, 4, 4, 3), (7, 7, 1, 3), np.float32)
    with models.forward_mode():
      out = jax.jvp(own, (x, k), (u, v))
    _, expected = jax.jvp(plain, (x, k), (u, v))
    assert_trees_close(out[1], expected, rtol=1e-6)
    assert_trees_close(own(x, k), out[0], rtol=1e-5)
    with self.assertRaisesRegex(TypeError, 'forward-mode'):
      jax.jvp(own, (x, k), (u, v))

  def test_forward_over_reverse_equals_reverse_over_reverse(self):
    def loss(x, k):
      return jnp.sum(jnp.sin(self.own(x, k)))

    args = (self.x, self.k), (self.u, self.v)
    with models.forward_mode():
      hvp = jax.jit(lambda *args: jax.jvp(jax.grad(loss, (0, 1)), *args)[1])(
        *args
      )
    _, expected = jax.jit(derivatives(self.own))(*args[0], *args[1])
    assert_trees_close(hvp, expected, rtol=1e-4)

  def test_programs_jitted_outside_are_traced_anew(self):
    fn = jax.jit(self.own)
    fn(self.x, self.k)
    with models.forward_mode():
      jax.jvp(fn, (self.x, self.k), (self.u, self.v))
    jax.grad(lambda x: fn(x, self.k).sum())(self.x)
    with self.assertRaises(TypeError):
      jax.jvp(fn, (self.x, self.k), (self.u, self.v))

  def test_pointwise_convolutions_need_no_context(self):
    own, plain = both(stride=2, padding=0, groups=1)
    args = (self.x, self.k[:1, :1]), (self.u, self.v[:1, :1])
    assert_trees_close(jax.jvp(own, *args), jax.jvp(plain, *args), rtol=1e-5)


def plain_layout():
  return lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), LAYOUT)


def layouts(fn, args) -> set:
  """Dimension numbers of all convolutions of a function."""
  found = set()

  def visit(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'conv_general_dilated':
        found.add(eqn.params['dimension_numbers'])
      for inner in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda p: hasattr(p, 'eqns')
      ):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          visit(inner)

  visit(jax.make_jaxpr(fn)(*args).jaxpr)
  return found
