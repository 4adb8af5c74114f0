"""Re-activates the dormant backdoor of defended models, with its controls.

python -m launch.reactivate \
  --config=configs/reactivation/white_box.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
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
  zoo,
)
from launch import cli, lineage, show, world

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
  made = []
  for family in lineage.families(
    config, context, parents or flags.FLAGS.parents
  ):
    clean = lineage.clean_model(context, family.here, 'launch.reactivate')
    made += _Attack(config, context, family, *clean).run()
  return made


class _Cell(NamedTuple):
  """One run of the attack: a setting on a model, for some children."""

  setting: reactivation.controls.Setting
  classifier: types.Classifier
  model: types.ModelState
  children: Iterable[int]


class _Attack:
  """One re-activation method on one family."""

  def __init__(self, config, context, family, clean, clean_state):
    self.config, self.context, self.family = config, context, family
    self.clean, self.clean_state = clean, clean_state
    entry = registry.get(reactivation.REGISTRY, config.name, 'reactivation')
    self.make = entry.make
    self.hp = registry.make_hparams(entry.hparams, config.method)
    self.settings = {'method': self.hp}
    self.key = keys.root(config.seed)
    self.exec = cli.execution(config)

  def run(self) -> list:
    """Runs what is missing."""
    known = {}
    for child in self.family.children:
      known[child.artefact.card.run_id] = world.finished(
        self.context, self.run_id(child)
      )
    todo = [
      c for c in self.family.children if known[c.artefact.card.run_id] is None
    ]
    for child in self.family.children:
      if child not in todo:
        show.done(f're-activation of {child.artefact.name}: finished before')
    if todo:
      with show.bar(f'{self.config.name} · {len(todo)} models') as bar:
        results = self.attack(todo, bar[0])
      for child, result in zip(todo, results, strict=True):
        known[child.artefact.card.run_id] = self.store(
          child, result, bar[1], len(todo)
        )
    return list(known.values())

  def parents(self, child) -> tuple[str, ...]:
    """Defended, attacked and clean model."""
    return (
      child.artefact.card.run_id,
      self.family.victim.artefact.card.run_id,
      self.clean.card.run_id,
    )

  def run_id(self, child) -> str:
    """The name of this attack on one child."""
    return zoo.run_id(
      'reactivate',
      self.config.name,
      1,
      self.settings | {'grid': self.config.grid},
      self.family.here.dataset_id,
      self.config.seed,
      self.parents(child),
    )

  def attack(self, children, on_chunk) -> list[dict]:
    """All settings on all children.

    Cells that share a classifier run as one stack, each with a pool of its
    own; controls on the clean and the attacked model run once per family.
    """
    grid = reactivation.controls.GRID
    settings = grid if self.config.grid else reactivation.controls.REQUIRED
    network = self.family.here.classifier
    once = {'clean': self.clean_state, 'attacked': self.family.victim.model}
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
          'curves': jax.tree.map(lambda x, i=i: x[i], curves),
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

      members = jax.tree.map(
        lambda x, rows=rows: x[jnp.asarray(rows)], (carry.model, carry.extra)
      )
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

  def store(self, child, result, timer, lanes):
    """Stores the attack on one child."""
    defended = child.artefact.card
    delta = result.pop('delta')
    curves = result.pop('curves')
    r_acc = result.pop('r_acc')
    card = lineage.card(
      'reactivate',
      self.config.name,
      self.run_id(child),
      self.config,
      self.settings,
      defended,
      self.parents(child),
      result,
    )
    named = ('reactivated_asr', 'control_clean_input_asr')
    named += ('control_clean_model_asr',)
    artefact = world.finish(
      self.context,
      card,
      state={'trigger': delta},
      arrays=self.examples(delta)
      | {
        f'curves/{phase}/{name}': values
        for phase, values_of in curves.items()
        for name, values in values_of.items()
      },
      config=self.config.to_dict(),
      metrics=result | {'r_acc': r_acc},
      record=world.record(
        card,
        **{name: result[name] for name in named},
        **world.attack_facts(defended),
        defense=defended.method,
        asr=defended.metrics['asr'],
        c_acc=defended.metrics['c_acc'],
        r_acc=r_acc,
        eps=float(self.hp.eps),
        norm=self.hp.norm,
        reactivation_budget=_budget(self.hp),
        run_s=timer.run_s / lanes,
        compile_s=timer.compile_s / lanes,
      ),
    )
    show.done(
      f'{defended.method} {defended.name}: ASR {defended.metrics["asr"]:.4f} → '
      f'{result["reactivated_asr"]:.4f} re-activated; controls: clean input '
      f'{result["control_clean_input_asr"]:.4f}, clean model '
      f'{result["control_clean_model_asr"]:.4f}'
    )
    return artefact

  def examples(self, delta) -> dict[str, np.ndarray]:
    """A few test images: clean, triggered, triggered and perturbed."""
    clean, stamped, *_ = lineage.triggered_test(self.family)
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
