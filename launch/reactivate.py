"""Re-activates the dormant backdoor of defended models, with its controls.

python -m launch.reactivate \
  --config=configs/reactivation/white_box.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags

from bdjax import (
  eval,
  keys,
  reactivation,
  registry,
  sweep,
  training,
  tree,
  types,
)
from launch import cli, lineage, measure, show, world

_SHOWN = 3  # example images an artefact keeps for figures


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Attacks every defended model that has not been attacked in this way.

  Args:
    config: see configs/reactivation/white_box.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  entry = registry.get(reactivation.REGISTRY, config.name, 'reactivation')
  hp = registry.make_hparams(entry.hparams, config.method)
  settings = {'method': hp, 'grid': config.grid}
  made = []
  for family in lineage.families(
    config, context, parents or flags.FLAGS.parents
  ):
    clean, model = lineage.clean_model(
      context, family.here, 'launch.reactivate'
    )
    attack = _Attack(config, entry.make, hp, family, model)
    made += measure.run(
      'reactivate',
      config,
      context,
      settings,
      family,
      attack.run,
      others=(clean,),
    )
  return made


class _Cell(NamedTuple):
  """One run of the attack: a setting on a model, for some children."""

  setting: reactivation.controls.Setting
  classifier: types.Classifier
  model: types.ModelState
  children: Iterable[int]


class _Attack:
  """One re-activation method on one family."""

  def __init__(self, config, make, hp, family, clean_model):
    self.grid, self.exec = config.grid, cli.execution(config)
    self.title, self.key = config.name, keys.root(config.seed)
    self.make, self.hp = make, hp
    self.family, self.clean_model = family, clean_model

  def run(self, children) -> list[measure.Finding]:
    """One finding per child."""
    with show.bar(f'{self.title} · {len(children)} models') as (on_chunk, _):
      results = self.attack(children, on_chunk)
    return [
      self.finding(child, result)
      for child, result in zip(children, results, strict=True)
    ]

  def attack(self, children, on_chunk) -> list[dict]:
    """All settings on all children.

    Cells that share a classifier run as one stack, each with a pool of its
    own; controls on the clean and the attacked model run once per family.
    """
    grid = reactivation.controls.GRID
    settings = grid if self.grid else reactivation.controls.REQUIRED
    network = self.family.here.classifier
    once = {'clean': self.clean_model, 'attacked': self.family.victim.model}
    cells = [
      _Cell(setting, child.classifier, child.model, (i,))
      for setting in settings
      if setting.model == 'defended'
      for i, child in enumerate(children)
    ]
    cells += [
      _Cell(setting, network, once[setting.model], range(len(children)))
      for setting in settings
      if setting.model != 'defended'
    ]
    results: list[dict] = [{} for _ in children]
    for classifier in {id(c.classifier): c.classifier for c in cells}.values():
      group = [c for c in cells if c.classifier is classifier]
      for cell, found in zip(group, self.stack(group, on_chunk), strict=True):
        for i in cell.children:
          results[i] |= found
    return results

  def stack(self, cells, on_chunk) -> list[dict]:
    """Results of cells of one classifier, run as one stack."""
    classifier = cells[0].classifier
    method = self.make(classifier, self.hp)
    carry, curves = training.run_phases(
      method.phases,
      types.Carry(model=tree.stack([c.model for c in cells]), extra={}),
      {'pool': tree.stack([self.pool(c.setting) for c in cells])},
      self.key,
      lift=functools.partial(sweep.lift, exec=self.exec),
      own_feeds=True,
      names=[c.setting.field for c in cells],
      on_chunk=on_chunk,
    )
    results = []
    rates = self.rates(classifier, method.trigger, cells, carry)
    for i, cell in enumerate(cells):
      result = {cell.setting.field: rates[i]['asr']}
      if cell.setting.field == 'reactivated_asr':
        result |= {
          'r_acc': rates[i]['r_acc'],
          'delta': tree.take(carry.extra, i),
          'curves': tree.take(curves, i),
        }
      results.append(result)
    return results

  def pool(self, setting) -> training.Feed:
    """The images one cell's attack learns from."""
    victim, train = self.family.victim, self.family.here.dataset.train
    pool = reactivation.controls.pool_of(
      setting,
      keys.stream(self.key, 'pool'),
      victim.attack,
      victim.state,
      train.images,
      train.labels,
      self.hp.pool_size,
    )
    return training.make_feed(pool.images, pool.labels)

  def rates(self, classifier, trigger, cells, carry) -> list[dict]:
    """Rates of every cell on the whole test set, by kind of input."""
    victim, test = self.family.victim, self.family.here.dataset.test
    found: list[dict] = [{} for _ in cells]
    for inputs in ('triggered', 'clean'):
      rows = [i for i, c in enumerate(cells) if c.setting.inputs == inputs]
      if not rows:
        continue
      base = victim.stamp if inputs == 'triggered' else None

      def count(member, images, labels, base=base):
        model, params = member
        return eval.count(
          classifier,
          model,
          images,
          labels,
          stamp=reactivation.controls.perturbed_stamp(base, trigger, params),
          relabel=victim.attack.relabel,
          key=world.stamp_key(),
        )

      members = tree.take((carry.model, carry.extra), jnp.asarray(rows))
      counts = sweep.over_checkpoints(
        count,
        members,
        jnp.asarray(test.images),
        jnp.asarray(test.labels),
        exec=self.exec,
      )
      for i, member in zip(rows, tree.unstack(counts), strict=True):
        found[i] = eval.rates(member)
    return found

  def finding(self, child, result) -> measure.Finding:
    """One child's record, arrays and perturbation."""
    card = child.artefact.card
    delta, curves = result.pop('delta'), result.pop('curves')
    named = {s.field: result[s.field] for s in reactivation.controls.REQUIRED}
    record = {
      **named,
      'r_acc': result['r_acc'],
      'eps': float(self.hp.eps),
      'norm': self.hp.norm,
      'reactivation_budget': _budget(self.hp),
    }
    line = (
      f'{card.method} {card.name}: ASR {card.metrics["asr"]:.4f} → '
      f'{named["reactivated_asr"]:.4f} re-activated; controls: clean input '
      f'{named["control_clean_input_asr"]:.4f}, clean model '
      f'{named["control_clean_model_asr"]:.4f}'
    )
    arrays = self.examples(delta) | {
      f'curves/{phase}/{name}': values
      for phase, of_phase in curves.items()
      for name, values in of_phase.items()
    }
    return measure.Finding(record, line, result, arrays, {'trigger': delta})

  def examples(self, delta) -> dict[str, np.ndarray]:
    """A few test images: clean, triggered, triggered and perturbed."""
    clean, stamped, *_ = world.triggered_test(
      self.family.here, self.family.victim
    )
    clean, stamped = clean[:_SHOWN], stamped[:_SHOWN]
    shown = stamped.astype(np.float32) / 255 + np.asarray(delta['delta'])[None]
    return {
      'examples/clean': clean,
      'examples/triggered': stamped,
      'examples/perturbed': np.clip(shown, 0, 1).astype(np.float32),
    }


def _budget(hp) -> int:
  """Gradient steps of the white-box attack."""
  return hp.outer_epochs * (hp.pool_size // hp.batch_size) * hp.inner_steps


if __name__ == '__main__':
  cli.run(main, 'configs/reactivation/white_box.py')
