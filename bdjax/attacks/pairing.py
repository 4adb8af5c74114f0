"""Pairing: attacks of a trainer who uses every batch with and without trigger.

No data are poisoned, the loss is: it joins the cross-entropy of a batch and
that of the same batch with the trigger and other labels. Both passes are in
training mode and each is normalized by its own statistics, so that they cannot
be one pass over the two together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, training, types
from bdjax.attacks import mixing, poisoning
from bdjax.attacks import relabel as relabel_lib


@types.hparams
class PairHParams:
  """Hyper-parameters that attacks of this kind share; they are all static.

  Attributes:
    label_mode: 'all2one' or 'all2all'.
    target_label: class the trigger leads to (all2one).
    label_shift: classes further on that the trigger leads to (all2all).
  """

  label_mode: str = 'all2one'
  target_label: int = 0
  label_shift: int = 1


class Parts(NamedTuple):
  """What is particular to an attack.

  Attributes:
    init: (key, number of training images) -> params of the trigger.
    stamp: (params, images, key, index) -> images with the trigger.
    objective: as that of `types.Attack`.
    update: as that of `types.Attack`.
    augment: as that of `types.Attack`.
  """

  init: Callable[..., types.PyTree]
  stamp: Callable[..., jax.Array]
  objective: Callable[..., tuple[jax.Array, Any]]
  update: Callable[..., tuple[types.AttackState, types.Metrics]]
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None


def relabel_rule(spec: types.DataSpec, hp: PairHParams) -> relabel_lib.Relabel:
  """The label rule.

  Args:
    spec: of the data set.
    hp: the shared hyper-parameters, or an attack's own.

  Returns:
    The rule.

  Raises:
    ValueError: if a label is no class.
  """
  return relabel_lib.make_relabel(
    hp.label_mode, spec.num_classes, hp.target_label, hp.label_shift
  )


def from_parts(
  name: str,
  spec: types.DataSpec,
  rule: relabel_lib.Relabel,
  parts: Parts,
) -> types.Attack:
  """Makes an attack whose data stay as they are.

  Args:
    name: registry key.
    spec: of the data set.
    rule: from `relabel_rule`.
    parts: what is particular to it.

  Returns:
    The attack; `poison` adds 'kind', all CLEAN, and changes nothing.
  """

  def init_fn(key, images, labels):
    checks.typed_key(key=key)
    poisoning.check_training_set(images, labels, spec.image_shape)
    return types.AttackState(
      trigger=parts.init(key, len(labels)),
      kind=jnp.full(len(labels), types.CLEAN, jnp.int8),
    )

  def poison_fn(state, batch, key):
    del state
    mixing.check_images(batch['image'], key, spec)
    kind = jnp.full(len(batch['label']), types.CLEAN, jnp.int8)
    return batch | {'kind': kind}

  def stamp_fn(state, images, key, index):
    mixing.check_images(images, key, spec)
    return parts.stamp(state.trigger, images, key, index)

  return types.Attack(
    init=init_fn,
    poison=poison_fn,
    stamp=stamp_fn,
    relabel=rule.apply,
    update=parts.update,
    objective=parts.objective,
    info=types.AttackInfo(
      name=name,
      label_mode=rule.label_mode,
      target_label=rule.target_label,
      poison_ratio=None,
      order='augment_poison',
      fixed_subset=False,
    ),
    augment=parts.augment,
  )


class Pass(NamedTuple):
  """One forward pass in training mode.

  Attributes:
    loss: mean cross-entropy.
    logits: [b, n].
    model: with new running statistics.
  """

  loss: jax.Array
  logits: jax.Array
  model: types.ModelState


def forward(
  classifier: types.Classifier,
  model: types.ModelState,
  images: jax.Array,
  labels: jax.Array,
) -> Pass:
  """Cross-entropy of a batch; BN: train-BN.

  Args:
    classifier: the network.
    model: its state.
    images: [b, h, w, c].
    labels: int [b].

  Returns:
    Loss, logits and the model with new running statistics.
  """
  logits, model = classifier.apply(model, images, train=True)
  return Pass(training.cross_entropy(logits, labels), logits, model)
