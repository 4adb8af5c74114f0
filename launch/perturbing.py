"""Re-activations that put a trigger on top of the original one."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import (
  data,
  eval,
  keys,
  reactivation,
  sweep,
  training,
  tree,
  types,
)
from launch import (
  comparison,
  lineage,
  measure,
  methods,
  plans,
  results,
  show,
  world,
)

_SHOWN = 3  # example images an artefact keeps for figures
controls = reactivation.controls


class Attack:
  """One method on one family."""

  def __init__(
    self, config, context, method: methods.Method, family, clean_model
  ):
    self.config, self.method, self.family = config, method, family
    self.hp, self.key = method.hp, keys.root(config.seed)
    self.plans = plans.of(config.name)(
      config, context, method, family, clean_model
    )
    self.parents_of = self.plans.parents_of
    self.pool = functools.cache(self._pool)
    self.shown = functools.cache(self._shown)
    self.settings = {'method': self.hp, 'grid': config.get('grid', False)}
    self.settings |= self.plans.settings
    self.noise = config.get('noise')
    if self.noise:
      self.settings |= {'noise': self.noise, 'num_cka': config.num_cka}

  def run(self, children: Sequence[lineage.Child]) -> list[measure.Finding]:
    """One finding per child."""
    runs, cells = self.plans.plan(children)
    title = f'{self.config.name} · {len(runs)} runs'
    with show.bar(title) as (on_chunk, _):
      triggers, curves = self.learn(runs, on_chunk)
    rates = self.rates(runs, cells, triggers)
    by_child: list[dict] = [{} for _ in children]
    for cell, rate in zip(cells, rates, strict=True):
      for i in cell.children:
        found = {'rates': rate, 'trigger': triggers[cell.run]}
        found |= {'run': runs[cell.run], 'curves': curves[cell.run]}
        by_child[i][cell.setting.field] = found
    return [
      self.finding(child, result)
      for child, result in zip(children, by_child, strict=True)
    ]

  def learn(self, runs, on_chunk) -> tuple[list, list]:
    """(triggers, curves) of all runs; those of one method as one stack."""
    triggers: list[Any] = [None] * len(runs)
    curves: list[Any] = [None] * len(runs)
    kind = lambda run: (id(run.method), str(jax.tree.map(jnp.shape, run.extra)))
    for rows in _alike(runs, kind):
      group = [runs[i] for i in rows]
      carry, history = self.method.learn(
        group[0].method,
        types.Carry(
          model=tree.stack([run.model for run in group]),
          extra=tree.stack([run.extra for run in group]),
        ),
        {'pool': tree.stack([self.pool(run.inputs) for run in group])},
        self.key,
        own_feeds=True,
        names=[run.name for run in group],
        on_chunk=on_chunk,
      )
      for i, row in enumerate(rows):
        triggers[row] = tree.take(carry.extra, i)
        curves[row] = tree.take(history, i)
    return triggers, curves

  def _pool(self, inputs: str) -> training.Feed:
    """The images a run learns from, on the device."""
    pool = self.plans.draw(inputs)
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
      counts = sweep.over_checkpoints(
        self.method.counting(group[0].classifier, trigger),
        tree.stack([(c.model, triggers[c.run]) for c in group]),
        *self.family.here.test,
        self.below(group[0].setting.inputs),
        exec=self.method.exec,
      )
      measured = [eval.rates(member) for member in tree.unstack(counts)]
      for row, rates in zip(rows, measured, strict=True):
        found[row] = rates
    return found

  def below(self, inputs: str) -> eval.Triggered:
    """The test set that perturbations are put on."""
    shown = self.family.victim.shown
    if inputs == 'clean':
      images, _ = self.family.here.test
      shown = shown._replace(images=data.to_float(images))
    return shown

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
      arrays |= results.flat_curves(found['curves'], prefix)
    metrics = asr | {'r_acc': record['r_acc']}
    if self.noise:
      compared = comparison.compare(self, child, result)
      metrics, arrays = metrics | compared.metrics, arrays | compared.arrays
    return measure.Finding(record, line, metrics, arrays, {'trigger': trigger})

  def examples(self, trigger, params) -> dict[str, np.ndarray]:
    """A few test images: clean, triggered, triggered and perturbed."""
    clean, stamped = self.shown()
    perturbed = _perturb(trigger.apply)(params, jnp.asarray(stamped))
    return {
      'examples/clean': clean,
      'examples/triggered': stamped,
      'examples/perturbed': np.asarray(perturbed),
    }

  def _shown(self) -> tuple[np.ndarray, np.ndarray]:
    """Those images without and with the trigger."""
    return world.triggered_test(self.family.here, self.family.victim, _SHOWN)[
      :2
    ]


@functools.lru_cache(maxsize=8)
def _perturb(apply):
  """A trigger on uint8 images [b, h, w, c], as one program."""
  one = lambda params, x: apply(params, x / jnp.float32(255), keys.root(0))
  return jax.jit(jax.vmap(one, in_axes=(None, 0)))


def _alike(items, kind) -> list[list[int]]:
  """Positions of items grouped by kind, in order of appearance."""
  groups: dict[Any, list[int]] = {}
  for i, item in enumerate(items):
    groups.setdefault(kind(item), []).append(i)
  return list(groups.values())


def _budget(hp, curves) -> int:
  """Queries of a search, gradient steps of everything else."""
  (phase,) = curves.values()
  if 'queries' in phase:
    return int(phase['queries'][-1])
  return len(phase['loss']) * getattr(hp, 'inner_steps', 1)
