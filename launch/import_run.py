"""Brings a model that others trained into the store.

python -m launch.import_run --run_dir=DIR
python -m launch.import_run --weights=clean_model.pth --dataset=cifar10 \
  --arch=preactresnet18

`--run_dir` is a folder of BackdoorBench: it becomes an attacked model, on which
`launch.defend` and `launch.existence` start like on any other. `--weights` is
a torch state dictionary: it becomes a clean model. Data are your own, by
--data_dir, in torchvision's order. What an imported attack does not have is a
trigger for new images: methods that need one refuse it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_dict

from bdjax import types, zoo
from launch import cli, imported, results, scratch, show, world

RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'Folder of an attacked model, with attack_result.pt.'
)
WEIGHTS = flags.DEFINE_string(
  'weights', None, 'File of a clean model, a torch state dictionary.'
)
DATASET = flags.DEFINE_string('dataset', None, 'Data set it was trained on.')
ARCH = flags.DEFINE_string('arch', None, 'Architecture.')
ATTACK = flags.DEFINE_string('attack', None, 'Attack, where no file says it.')
POISON_RATIO = flags.DEFINE_float(
  'poison_ratio', None, 'Poisoned / whole training set, where no file says it.'
)


class Request(NamedTuple):
  """What to import; see the flags.

  Attributes:
    run_dir: folder of an attacked model.
    weights: file of a clean one; exactly one of the two.
    dataset: registry key; None = as the files say.
    arch: registry key; None = as the files say.
    attack: registry key; None = as the files say.
    poison_ratio: None = as the files say.
  """

  run_dir: Any = None
  weights: Any = None
  dataset: str | None = None
  arch: str | None = None
  attack: str | None = None
  poison_ratio: float | None = None


def main(
  config, context: cli.Context, request: Request | None = None
) -> zoo.Artefact:
  """Reads, converts, evaluates and stores one model.

  Args:
    config: not used.
    context: where and how.
    request: what to import; None = the flags.

  Returns:
    The artefact, the old one if the same was imported before.
  """
  del config
  request = request or Request(
    RUN_DIR.value,
    WEIGHTS.value,
    DATASET.value,
    ARCH.value,
    ATTACK.value,
    POISON_RATIO.value,
  )
  if (request.run_dir is None) == (request.weights is None):
    raise ValueError(
      'Give one of --run_dir (an attacked model with its images) and --weights '
      '(a clean model).'
    )
  if request.weights is not None:
    return _clean(context, request)
  return _attacked(context, request)


def _clean(context: cli.Context, request: Request) -> zoo.Artefact:
  """A clean model from weights alone."""
  if not (request.dataset and request.arch):
    raise ValueError(
      'A state dictionary does not say what it was trained on; give --dataset '
      'and --arch, such as --dataset=cifar10 --arch=preactresnet18.'
    )
  weights = zoo.backdoorbench.read_weights(request.weights)
  here = _world(context, request.dataset, request.arch, weights)
  return _store(context, here, 'clean', 'clean', weights)


def _attacked(context: cli.Context, request: Request) -> zoo.Artefact:
  """An attacked model with its triggered images."""
  source = zoo.backdoorbench.open_run(request.run_dir)
  here = _world(
    context,
    request.dataset or source.dataset,
    request.arch or source.arch,
    source.weights,
  )
  train, test = here.dataset.train, here.dataset.test
  poison = zoo.backdoorbench.read_poison(
    source,
    train.labels,
    name=request.attack,
    poison_ratio=request.poison_ratio,
  )
  zoo.backdoorbench.check_order(poison, train, test)
  return _store(context, here, 'attack', poison.name, source.weights, poison)


def _world(context, dataset: str, arch: str, weights) -> world.World:
  """Data and a network of the width that the weights have."""
  options = zoo.torch_states.options(arch, weights)
  return world.make(dataset, arch, context, arch_options=options)


def _store(context, here, stage, method, weights, poison=None) -> zoo.Artefact:
  """Evaluates and writes a model, unless it is there already."""
  model, by_position = zoo.torch_states.from_torch(weights, here.classifier)
  facts, arrays, victim = {}, {}, None
  if poison is not None:
    facts, arrays = imported.facts_of(poison), imported.to_arrays(poison)
    attack, state = imported.attack_of(facts, arrays, here.dataset)
    victim = world.Victim(here, None, attack, state, model)
    _check_complete(here, attack, poison.test)
  settings = {
    'imported': {
      **facts,
      'weights': imported.content_of(weights),
      'images': imported.content_of(arrays) if arrays else None,
    }
  }
  config = config_dict.ConfigDict({'seed': 0})
  run_id = zoo.run_id(
    stage,
    method,
    1,
    settings,
    here.dataset_id,
    config.seed,
    arch=here.arch,
    arch_options=here.arch_options,
  )
  done = results.finished(context, run_id)
  if done is not None:
    show.done(f'{method} model {done.name}: imported before')
    return done
  rates = world.rates(here, model, victim)
  backdoor = {} if poison is None else _record_fields(facts, poison)
  card = results.card(
    here,
    config,
    run_id=run_id,
    stage=stage,
    method=method,
    settings=settings,
    metrics=rates,
    attack=backdoor,
  )
  artefact = results.finish(
    context,
    card,
    state={'model': model},
    arrays=arrays,
    config=config.to_dict() | settings,
    metrics=rates | {'by_position': by_position},
    record=results.record(card, **rates, **backdoor, flags=['imported']),
  )
  note = '; weights matched by position, not by name' if by_position else ''
  show.done(
    f'{method} model {artefact.name}, imported: {scratch.summary(rates)}{note}'
  )
  return artefact


def _record_fields(facts, poison: zoo.backdoorbench.Poison) -> dict[str, Any]:
  """The record fields that describe the backdoor."""
  known = {k: v for k, v in facts.items() if k in zoo.records.FIELDS}
  return known | {'num_poison': int(np.sum(poison.kind == types.POISONED))}


def _check_complete(here, attack, test: zoo.triggered.Stored) -> None:
  """Every test image that the rule leads away must have been stored."""
  labels = np.asarray(here.dataset.test.labels)
  target = np.asarray(attack.relabel(jnp.asarray(labels)))
  led_away = np.flatnonzero(target != labels)
  missing = np.setdiff1d(led_away, test.index)
  if missing.size:
    raise ValueError(
      f'{missing.size} of {led_away.size} test images have no triggered '
      f'version, image {missing[0]} among them; rates on the others would not '
      'compare with any. Get the complete folder of the run.'
    )


if __name__ == '__main__':
  cli.run(main)
