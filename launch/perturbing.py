"""Re-activations that put a trigger on top of the original one.

An attack is planned as runs, each of which learns one trigger, and cells, each
of which asks what a trigger achieves in one setting. How the two hang together
is what methods differ in: the white- and black-box attacks learn anew in every
setting; the transfer attack learns on other models and is then tried on all;
QRA learns once per defended model.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import (
  eval,
  keys,
  reactivation,
  sweep,
  training,
  tree,
  types,
  zoo,
)
from launch import cli, comparison, lineage, measure, retuning, show, world

_SHOWN = 3  # example images an artefact keeps for figures
controls = reactivation.controls


class Run(NamedTuple):
  """One trigger to be learned.

  Attributes:
    method: the attack, made for the network it learns on.
    model: the model it starts from.
    extra: models beside it.
    inputs: what its pool carries, 'triggered' or 'clean', or 'both'.
    name: for messages.
  """

  method: types.Reactivation
  model: types.ModelState
  extra: Any
  inputs: str
  name: str


class Cell(NamedTuple):
  """One rate to be measured: what run i achieves in a setting.

  Attributes:
    setting: which inputs on which kind of model.
    classifier: that model's network.
    model: its weights.
    run: number of the run.
    children: numbers of the defended models it belongs to.
  """

  setting: controls.Setting
  classifier: types.Classifier
  model: types.ModelState
  run: int
  children: Iterable[int]


class Attack:
  """One method on one family."""

  def __init__(self, config, context, make, hp, family, clean_model):
    self.config, self.context, self.hp = config, context, hp
    self.make = functools.cache(functools.partial(_made, make, hp))
    self.pool = functools.cache(self._pool)
    self.exec, self.key = cli.execution(config), keys.root(config.seed)
    self.family, self.clean_model = family, clean_model
    grid = config.get('grid', False)
    self.grid = controls.GRID if grid else controls.REQUIRED
    self.settings = {'method': hp, 'grid': grid}
    if config.name == 'transfer':
      self.settings['surrogates'] = config.surrogates
    self.retuned_of: dict[str, zoo.Artefact] | None = None
    self.noise = config.get('noise')
    if self.noise:
      self.settings |= {'noise': self.noise, 'num_cka': config.num_cka}

  def parents_of(self, child: lineage.Child) -> tuple:
    """Artefacts that an attack on this child stands on beside its own."""
    if self.config.name == 'transfer':
      return tuple(other.artefact for other in self.surrogates_of(child))
    if self.config.name == 'qra':
      return (self.retuned(child),)
    return ()

  def retuned(self, child: lineage.Child) -> zoo.Artefact:
    """What the retuning attack made of a child.

    Raises:
      ValueError: if it has not been run, with the command.
    """
    if self.retuned_of is None:
      self.retuned_of = retuning.latest(self.context)
    card = child.artefact.card
    if card.run_id not in self.retuned_of:
      raise ValueError(
        f'{self.config.name} imitates the retuned twin of each model, and '
        f'{card.name} has none yet. Make it: python -m launch.reactivate '
        '--config=configs/reactivation/retuning_attack.py:dataset='
        f'{card.dataset} --parents={card.name} '
        f'--workdir={self.context.workdir}'
      )
    return self.retuned_of[card.run_id]

  def run(self, children: Sequence[lineage.Child]) -> list[measure.Finding]:
    """One finding per child."""
    runs, cells = self.plan(children)
    title = f'{self.config.name} · {len(runs)} runs'
    with show.bar(title) as (on_chunk, _):
      triggers, curves = self.learn(runs, on_chunk)
    rates = self.rates(runs, cells, triggers)
    results: list[dict] = [{} for _ in children]
    for cell, rate in zip(cells, rates, strict=True):
      for i in cell.children:
        found = {'rates': rate, 'trigger': triggers[cell.run]}
        found |= {'run': runs[cell.run], 'curves': curves[cell.run]}
        results[i][cell.setting.field] = found
    return [
      self.finding(child, result)
      for child, result in zip(children, results, strict=True)
    ]

  def plan(self, children) -> tuple[list[Run], list[Cell]]:
    """What is to be learned, and what is to be measured with it."""
    plans = {'transfer': self.plan_transfer, 'qra': self.plan_qra}
    return plans.get(self.config.name, self.plan_anew)(children)

  def cells(self, children) -> list[Cell]:
    """All settings; those off the defended model once for all children."""
    network, cells = self.family.here.classifier, []
    once = {'clean': self.clean_model, 'attacked': self.family.victim.model}
    for setting in self.grid:
      if setting.model == 'defended':
        cells += [
          Cell(setting, child.classifier, child.model, -1, (i,))
          for i, child in enumerate(children)
        ]
      else:
        all_of_them = range(len(children))
        cells.append(
          Cell(setting, network, once[setting.model], -1, all_of_them)
        )
    return cells

  def plan_anew(self, children) -> tuple[list[Run], list[Cell]]:
    """One run for each cell, on the cell's own model and inputs."""
    cells = self.cells(children)
    runs = [
      Run(
        self.make(c.classifier),
        c.model,
        {},
        c.setting.inputs,
        c.setting.field,
      )
      for c in cells
    ]
    return runs, [cell._replace(run=i) for i, cell in enumerate(cells)]

  def plan_transfer(self, children) -> tuple[list[Run], list[Cell]]:
    """One run per choice of surrogates and inputs, tried on all its models."""
    runs: dict[tuple, Run] = {}
    cells = []
    for i, child in enumerate(children):
      others = self.surrogates_of(child)
      for cell in self.cells([child]):
        known = (*map(id, others), cell.setting.inputs)
        runs.setdefault(known, self.transfer(others, cell.setting.inputs))
        number = list(runs).index(known)
        cells.append(cell._replace(run=number, children=(i,)))
    return list(runs.values()), cells

  def transfer(self, others, inputs) -> Run:
    """A run on surrogates, those of one network in one stack."""
    networks = {id(o.classifier): o.classifier for o in others}
    stacks = tuple(
      tree.stack([o.model for o in others if o.classifier is network])
      for network in networks.values()
    )
    method = self.make(
      self.family.here.classifier, surrogates=tuple(networks.values())
    )
    extra = {'surrogates': stacks}
    return Run(method, others[0].model, extra, inputs, inputs)

  def surrogates_of(self, child) -> list[lineage.Child]:
    """The first defended models of the family other than the child itself."""
    names, wanted = self.config.surrogates, self.hp.num_surrogates
    known = self.family.children
    if names is not None:
      order = {name: i for i, name in enumerate(names)}
      known = [c for c in known if c.artefact.card.method in order]
      known = sorted(known, key=lambda c: order[c.artefact.card.method])
    mine = child.artefact.card.run_id
    others = [c for c in known if c.artefact.card.run_id != mine][:wanted]
    if len(others) < wanted:
      raise ValueError(
        f'{child.artefact.name} has {len(others)} other defended versions to '
        f'learn from; name more by --parents, or lower '
        f'--config.method.num_surrogates={wanted}.'
      )
    return others

  def plan_qra(self, children) -> tuple[list[Run], list[Cell]]:
    """One run per defended model, tried on it and on the clean model."""
    network, runs, cells = self.family.here.classifier, [], []
    for i, child in enumerate(children):
      method = self.make(
        child.classifier,
        retuned_classifier=child.classifier,
        clean_classifier=network,
      )
      extra = {
        'retuned': world.load_model(self.retuned(child), self.family.here),
        'clean': self.clean_model,
      }
      name = child.artefact.card.method
      runs.append(Run(method, child.model, extra, 'both', name))
      cells += [
        cell._replace(run=i, children=(i,)) for cell in self.cells([child])
      ]
    return runs, cells

  def learn(self, runs, on_chunk) -> tuple[list, list]:
    """(triggers, curves) of all runs; those of one method as one stack."""
    triggers: list[Any] = [None] * len(runs)
    curves: list[Any] = [None] * len(runs)
    kind = lambda run: (id(run.method), str(jax.tree.map(jnp.shape, run.extra)))
    for rows in _alike(runs, kind):
      group = [runs[i] for i in rows]
      carry, history = training.run_phases(
        group[0].method.phases,
        types.Carry(
          model=tree.stack([run.model for run in group]),
          extra=tree.stack([run.extra for run in group]),
        ),
        {'pool': tree.stack([self.pool(run.inputs) for run in group])},
        self.key,
        lift=functools.partial(sweep.lift, exec=self.exec),
        own_feeds=True,
        names=[run.name for run in group],
        on_chunk=on_chunk,
      )
      for i, row in enumerate(rows):
        triggers[row] = tree.take(carry.extra, i)
        curves[row] = tree.take(history, i)
    return triggers, curves

  def _pool(self, inputs: str) -> training.Feed:
    """The images a run learns from."""
    victim, train = self.family.victim, self.family.here.dataset.train
    key, arrays = keys.stream(self.key, 'pool'), (train.images, train.labels)
    if inputs == 'both':
      pool = reactivation.pools.qra(
        key,
        victim.attack,
        victim.state,
        *arrays,
        num_clean=self.hp.num_clean,
        num_poisoned=self.hp.num_poisoned,
      )
    elif inputs == 'clean':
      pool = reactivation.pools.clean(
        key, victim.attack, *arrays, self.hp.pool_size
      )
    else:
      pool = reactivation.pools.triggered(
        key, victim.attack, victim.state, *arrays, self.hp.pool_size
      )
    return training.make_feed(pool.images, pool.labels)

  def rates(self, runs, cells, triggers) -> list[dict]:
    """Rates of every cell on the whole test set, network by network."""
    found: list[dict] = [{} for _ in cells]
    kind = lambda c: (
      id(c.classifier),
      c.setting.inputs,
      id(runs[c.run].method),
    )
    for rows in _alike(cells, kind):
      group = [cells[i] for i in rows]
      trigger = runs[group[0].run].method.trigger
      members = tree.stack([(c.model, triggers[c.run]) for c in group])
      base = None
      if group[0].setting.inputs == 'triggered':
        base = self.family.victim.stamp
      measured = self.count(group[0].classifier, trigger, base, members)
      for row, rates in zip(rows, measured, strict=True):
        found[row] = rates
    return found

  def count(self, classifier, trigger, base, members) -> list[dict]:
    """Rates of a stack of (model, trigger's parameters)."""
    test = self.family.here.dataset.test

    def one(member, images, labels):
      model, params = member
      return eval.count(
        classifier,
        model,
        images,
        labels,
        stamp=controls.perturbed_stamp(base, trigger, params),
        relabel=self.family.victim.attack.relabel,
        key=world.stamp_key(),
      )

    counts = sweep.over_checkpoints(
      one,
      members,
      jnp.asarray(test.images),
      jnp.asarray(test.labels),
      exec=self.exec,
    )
    return [eval.rates(member) for member in tree.unstack(counts)]

  def finding(self, child, result) -> measure.Finding:
    """One child's record, arrays and trigger."""
    card, woken = child.artefact.card, result['reactivated_asr']
    asr = {field: found['rates']['asr'] for field, found in result.items()}
    named = {s.field: asr[s.field] for s in controls.REQUIRED}
    trigger, curves = woken['trigger'], woken['curves']
    record = {
      **named,
      'r_acc': woken['rates']['r_acc'],
      'eps': float(self.hp.eps),
      'norm': getattr(self.hp, 'norm', 'linf'),
      'reactivation_budget': _budget(self.hp, curves),
    }
    line = (
      f'{self.config.name} on {card.method} {card.name}: ASR '
      f'{card.metrics["asr"]:.4f} → {named["reactivated_asr"]:.4f} '
      f're-activated; controls: clean input '
      f'{named["control_clean_input_asr"]:.4f}, clean model '
      f'{named["control_clean_model_asr"]:.4f}'
    )
    arrays = self.examples(woken['run'].method.trigger, trigger)
    for field, found in result.items():
      prefix = 'curves' if field == 'reactivated_asr' else f'curves_of/{field}'
      arrays |= _flat(prefix, found['curves'])
    metrics = asr | {'r_acc': record['r_acc']}
    if self.noise:
      compared = comparison.compare(self, child, result)
      metrics, arrays = metrics | compared.metrics, arrays | compared.arrays
    return measure.Finding(record, line, metrics, arrays, {'trigger': trigger})

  def examples(self, trigger, params) -> dict[str, np.ndarray]:
    """A few test images: clean, triggered, triggered and perturbed."""
    clean, stamped, *_ = world.triggered_test(
      self.family.here, self.family.victim
    )
    clean, stamped = clean[:_SHOWN], stamped[:_SHOWN]
    shown = jnp.asarray(stamped, jnp.float32) / 255
    shown = jax.vmap(lambda x: trigger.apply(params, x, keys.root(0)))(shown)
    return {
      'examples/clean': clean,
      'examples/triggered': stamped,
      'examples/perturbed': np.asarray(shown),
    }


def _made(make, hp, classifier, **networks) -> types.Reactivation:
  """The method for a network; cached, so that equal networks share it."""
  return make(classifier, hp, **networks)


def _alike(items, kind) -> list[list[int]]:
  """Positions of items grouped by kind, in order of appearance."""
  groups: dict[Any, list[int]] = {}
  for i, item in enumerate(items):
    groups.setdefault(kind(item), []).append(i)
  return list(groups.values())


def _flat(prefix, curves) -> dict[str, np.ndarray]:
  """Curves by phase and name, under one prefix."""
  return {
    f'{prefix}/{phase}/{name}': values
    for phase, of_phase in curves.items()
    for name, values in of_phase.items()
  }


def _budget(hp, curves) -> int:
  """Queries of a search, gradient steps of everything else."""
  (phase,) = curves.values()
  if 'queries' in phase:
    return int(phase['queries'][-1])
  return len(phase['loss']) * getattr(hp, 'inner_steps', 1)
