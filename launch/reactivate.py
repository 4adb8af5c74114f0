"""Re-activates the dormant backdoor of defended models, with its controls.

python -m launch.reactivate \
  --config=configs/reactivation/white_box.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import functools

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
        results = self.attack(todo, *bar)
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

  def attack(self, children, on_chunk, timer) -> list[dict]:
    """All settings on all children.

    Members that share a classifier and a pool run as one stack; the shared
    controls on the clean and the attacked model run once per family.
    """
    del timer
    grid = reactivation.controls.GRID if self.config.grid else None
    settings = grid or reactivation.controls.REQUIRED
    own = [s for s in settings if s.model == 'defended']
    results: list[dict] = [{} for _ in children]
    for i, child in enumerate(children):
      for setting in own:
        found = self.one(setting, child.classifier, child.model, on_chunk)
        results[i] |= self.named(setting, found)
    for setting in settings:
      if setting in own:
        continue
      model = (
        self.clean_state
        if setting.model == 'clean'
        else self.family.victim.model
      )
      found = self.one(
        setting, self.family.here.classifier, model, on_chunk
      )
      for result in results:
        result |= self.named(setting, found)
    return results

  def named(self, setting, found) -> dict:
    """A setting's result under the name of its record field."""
    rate, r_acc, delta, curves = found
    named = {setting.field: rate}
    if setting.field == 'reactivated_asr':
      named |= {'r_acc': r_acc, 'delta': delta, 'curves': curves}
    return named

  def one(self, setting, classifier, model, on_chunk):
    """(ASR, R-Acc, trigger params, curves) of one cell of the grid."""
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
    method = self.make(classifier, self.hp)

    def retitled(report):
      on_chunk(report._replace(phase=f'{setting.field} {self.serial}'))

    self.serial = getattr(self, 'serial', 0) + 1
    carry, curves = training.run_phases(
      method.phases,
      types.Carry(model=model, extra={}),
      {'pool': training.make_feed(pool.images, pool.labels)},
      self.key,
      on_chunk=retitled,
    )
    stamp = victim.stamp if setting.inputs == 'triggered' else None
    stamp = reactivation.controls.perturbed_stamp(
      stamp, method.trigger, carry.extra
    )
    test = self.family.here.dataset.test
    rates = eval.evaluate(
      classifier,
      model,
      jnp.asarray(test.images),
      jnp.asarray(test.labels),
      stamp=stamp,
      relabel=victim.attack.relabel,
      key=world.stamp_key(),
    )
    return rates['asr'], rates['r_acc'], carry.extra, curves

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
