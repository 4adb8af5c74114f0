"""Defends attacked models: every method on all that match a pattern.

python -m launch.defend --config=configs/defenses/ft_sam.py:dataset=digits16 \
  --parents='attacked/digits16/*'
python -m launch.defend \
  --config=configs/defenses/suite.py:dataset=digits16,methods=ft+ft_sam \
  --parents='attacked/digits16/*'

The models are defended as one stack, one at a time where a method reads what
belongs to a single victim or knows its trigger. A model or method that cannot
work is recorded with the reason; the others go on.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from bdjax import (
  checks,
  data,
  defenses,
  eval,
  keys,
  registry,
  sweep,
  training,
  tree,
  types,
  zoo,
)
from launch import cli, results, show, starts, world

ORACLE = frozenset({'test_clean', 'test_triggered'})
OF_ONE_VICTIM = ORACLE | {'train'}  # what a stack cannot share


class NothingMade(ValueError):
  """No model could be defended."""


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Defends every parent that has not been defended in this way.

  Args:
    config: see configs/defenses/ft_sam.py, or configs/defenses/suite.py for
      several methods.
    context: where and how.
    parents: pattern of attacked models; None = the flag.

  Returns:
    The artefacts, in the order of methods and parents; those that could not
    be made are left out.

  Raises:
    NothingMade: if none could be made, with the reasons.
  """
  parents = parents or starts.PARENTS.value
  configs = [config]
  if 'methods' in config:
    configs = [config[name] for name in config.methods]
  made, reasons = [], []
  for one in configs:
    one.seed = config.seed
    for setting, variant in cli.variants(one):
      made += _one_method(setting, context, parents, reasons, variant)
  if not made:
    raise NothingMade('\n'.join(['No model was defended.', *reasons]))
  return made


def _one_method(config, context, parents, reasons, variant) -> list:
  """One method on all parents; appends why a model could not be defended."""
  found = starts.find(config, context, parents, 'attack')
  entry = registry.get(defenses.REGISTRY, config.name, 'defense')
  hp = registry.make_hparams(entry.hparams, config.method)
  settings = {
    'method': hp,
    'clean_ratio': config.clean_ratio,
    'sampler': config.sampler,
  }
  runs = [
    _Run(_run_id(config, settings, parent.card), parent) for parent in found
  ]
  known = {run.run_id: results.finished(context, run.run_id) for run in runs}
  for artefact in known.values():
    if artefact is not None:
      show.done(f'defended model {artefact.name}: finished before')
  todo = [run for run in runs if known[run.run_id] is None]
  if todo:
    method = _Method(config, context, entry, hp, settings, reasons, variant)
    known |= method.run(todo)
  return [known[run.run_id] for run in runs if known[run.run_id] is not None]


class _Run(NamedTuple):
  """One model to defend."""

  run_id: str
  parent: zoo.Artefact


def _run_id(config, settings, card: zoo.Card) -> str:
  return zoo.run_id(
    'defend',
    config.name,
    1,
    settings,
    card.dataset_id,
    config.seed,
    [card.run_id],
  )


class _Method:
  """One method with its settings, on models of one world."""

  def __init__(self, config, context, entry, hp, settings, reasons, variant):
    self.config, self.context, self.reasons = config, context, reasons
    self.entry, self.hp, self.settings = entry, hp, settings
    self.variant = variant

  def run(self, runs: list[_Run]) -> dict[str, zoo.Artefact]:
    """Defends all it can; {run_id: artefact}."""
    here = world.of_card(runs[0].parent.card, self.context)
    healthy = []
    for run in runs:
      if run.parent.card.metrics.get('finite', True):
        healthy.append(run)
      else:
        self.refuse(here, [run], 'failed', 'the parent is not finite')
    made: dict[str, zoo.Artefact] = {}
    try:
      stacks = self.stacks(here, healthy)
      reserved = self.reserve(here)
      for stack in stacks:
        try:
          made |= self.defend(here, reserved, stack)
        except training.NonFiniteError as error:
          self.refuse(here, stack, 'failed', str(error))
    except checks.Unsupported as error:
      self.refuse(here, healthy, 'unsupported', str(error))
    return made

  def stacks(self, here, runs: list[_Run]) -> list[list[_Run]]:
    """All models at once, or one by one where each brings what is its own."""
    alone = starts.knows_trigger(self.entry) or OF_ONE_VICTIM & _reads(
      self.entry.make(here.classifier, self.hp)
    )
    if alone:
      return [[run] for run in runs]
    return [runs] if runs else []

  def reserve(self, here) -> np.ndarray:
    """Indices of the defender's clean images."""
    labels = np.asarray(here.dataset.train.labels)
    reserved = data.reserve_clean(
      keys.stream(keys.root(self.config.seed), 'subset'),
      labels,
      self.config.clean_ratio,
      sampler=self.config.sampler,
    )
    _check_reserve(labels[reserved], here.spec.num_classes, self.config)
    return reserved

  def refuse(self, here, runs, status: str, reason: str) -> None:
    """Records that there are no defended models, and why."""
    for run in runs:
      parent = run.parent.card
      zoo.records.append(
        self.context.records,
        results.record(
          self.card(here, run, {}, {}),
          **results.attack_facts(parent),
          defense=self.config.name,
          defense_stage='post_training',
          status=status,
          finite=status != 'failed',
          reason_text=reason,
          ckpt_ref=None,
        ),
      )
      self.reasons.append(
        f'{self.config.name} of {parent.name} is {status}: {reason}'
      )
      show.done(self.reasons[-1])

  def defend(self, here, reserved, runs) -> dict[str, zoo.Artefact]:
    """Runs the method over one stack and stores its members."""
    victims = [world.victim(run.parent, here) for run in runs]
    defense = starts.make_defense(self.entry, here, self.hp, victims[0])
    run_ids = [run.run_id for run in runs]
    models = [victim.model for victim in victims]
    stacked = len(models) > 1
    lift = functools.partial(sweep.lift, exec=cli.execution(self.config))
    progress = zoo.Progress(self.context.workdir, zoo.digest.digest(run_ids))
    title = f'{self.config.name} · {len(victims)} model' + 's' * stacked
    with show.bar(title) as (on_chunk, timer):
      carry, curves = training.run_phases(
        defense.phases,
        types.Carry(
          model=tree.stack(models, run_ids) if stacked else models[0], extra={}
        ),
        _feeds(here, defense, reserved, victims),
        keys.root(self.config.seed),
        augment=here.augment,
        lift=lift if stacked else None,
        names=run_ids,
        on_chunk=on_chunk,
        snapshots=progress,
        snapshot_seconds=self.context.snapshot_seconds,
      )
    finite = training.finite_members(curves, stacked)
    finite = np.broadcast_to(finite, len(victims))
    lane = _Lane(
      self,
      here,
      defense,
      reserved,
      {
        'clean_ratio': self.config.clean_ratio,
        'num_clean': len(reserved),
        'reserve_id': zoo.digest.digest(reserved),
        'variant': self.variant,
        'exec_mode': self.config.exec.mode,
        'pack_size': len(victims),
        'oracle_used': starts.knows_trigger(self.entry)
        or bool(ORACLE & _reads(defense)),
        **_cost(defense, curves, timer, len(victims)),
      },
    )
    made = {}
    for i, (victim, run) in enumerate(zip(victims, runs, strict=True)):
      mine, my_curves = carry, curves
      if stacked:
        mine, my_curves = tree.take(carry, i), tree.take(curves, i)
      made[run.run_id] = lane.store(
        victim, run, mine, my_curves, bool(finite[i])
      )
    progress.clear()
    return made

  def card(self, here, run: _Run, rates, reserve) -> zoo.Card:
    """The card of one defended model."""
    parent = run.parent.card
    return results.card(
      here,
      self.config,
      run_id=run.run_id,
      stage='defend',
      method=self.config.name,
      settings=self.settings,
      metrics=rates,
      attack=parent.attack,
      parents=(parent.run_id,),
      facts=parent.data | reserve,
    )


def _reads(defense: types.Defense) -> set[str]:
  return {phase.reads for phase in defense.phases}


def _feeds(here, defense, reserved, victims) -> dict[str, training.Feed]:
  """What the phases read; of a single victim where it is the victim's."""
  train, reads = here.dataset.train, _reads(defense)
  feeds = {'clean': training.make_feed(train.images, train.labels, reserved)}
  if 'train' in reads:
    feeds['train'] = training.make_feed(*world.poisoned_train(here, victims[0]))
  if ORACLE & reads:
    _, triggered, _, targets, _ = world.triggered_test(here, victims[0])
    feeds['test_clean'] = training.make_feed(*here.dataset.test)
    feeds['test_triggered'] = training.make_feed(triggered, targets)
  return feeds


def _check_reserve(labels: np.ndarray, num_classes: int, config) -> None:
  """Raises where the reserve is too small to stand for all classes."""
  seen = len(np.unique(labels))
  if len(labels) < num_classes or seen < 2:
    raise checks.Unsupported(
      f'`clean_ratio={config.clean_ratio}` reserves {len(labels)} images of '
      f'{seen} of {num_classes} classes, too few to tell classes apart; raise '
      "it, or set `sampler='class_balanced'`."
    )


def _cost(defense, curves, timer, lanes: int) -> dict:
  """Steps, and seconds divided among the lanes of a stack."""
  done = {
    phase.name: next(iter(curves[phase.name].values())).shape[-1]
    for phase in defense.phases
    if phase.name in curves
  }
  examples = sum(
    done.get(phase.name, 0) * phase.batch_size for phase in defense.phases
  )
  spent = timer.cost(examples * lanes)
  for name in ('run_s', 'compile_s'):
    spent[name] /= lanes
  passes = sum(
    done.get(phase.name, 0) * phase.grad_passes for phase in defense.phases
  )
  return spent | {'steps': sum(done.values()), 'grad_passes': passes}


class _Lane(NamedTuple):
  """What is the same for all models of a stack when they are stored."""

  method: _Method
  here: world.World
  defense: types.Defense
  reserved: np.ndarray
  shared: dict

  def store(self, victim, run, carry, curves, finite) -> zoo.Artefact:
    """Evaluates and stores one defended model."""
    parent, config = run.parent.card, self.method.config
    classifier = self.defense.deploy(self.here.classifier, carry.extra)
    rates = world.rates(self.here, carry.model, victim, classifier=classifier)
    ratings = _ratings(parent.metrics, rates)
    rates = rates | {'finite': finite and rates['finite']}
    reserve = {'reserved': self.reserved, 'reserved_from': 'train'}
    card = self.method.card(self.here, run, rates, reserve)
    state = {'model': carry.model}
    if jax.tree.leaves(carry.extra):
      state['extra'] = carry.extra
    artefact = results.finish(
      self.method.context,
      card,
      state=state,
      arrays=results.flat_curves(curves),
      config=config.to_dict(),
      metrics=rates | ratings,
      record=results.record(
        card,
        **rates,
        **ratings,
        **self.shared,
        **results.attack_facts(parent),
        defense=config.name,
        defense_stage='post_training',
      ),
    )
    show.done(
      f'{config.name} of {parent.method} {artefact.name}: '
      f'C-Acc {rates["c_acc"]:.4f}, ASR {parent.metrics["asr"]:.4f} → '
      f'{rates["asr"]:.4f}, DER {ratings["der"]:.4f}'
    )
    return artefact


def _ratings(before, after) -> dict:
  """DER and RIR against the attacked model, and its rates."""
  accuracy = before['c_acc'], after['c_acc']
  return {
    'der': eval.der(before['asr'], after['asr'], *accuracy),
    'rir': eval.rir(before['r_acc'], after['r_acc'], *accuracy),
    **{f'base_{k}': before[k] for k in ('c_acc', 'asr', 'r_acc')},
  }


if __name__ == '__main__':
  cli.run(main, 'configs/defenses/ft.py')
