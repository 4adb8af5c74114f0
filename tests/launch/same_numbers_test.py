"""One run, three ways: flag, functions, sweep; the numbers are the same."""

import ast
import contextlib
import functools
import io
import re

import jax
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import eval, sweep, tree, types, zoo
from launch import cli, defend, world
from tests.launch import toy

_RATES = ('c_acc', 'asr', 'r_acc')
_SEEDS = range(4)


def _rates(values) -> dict[str, float]:
  return {name: values[name] for name in _RATES}


@functools.cache
def _singles() -> list[dict]:
  """Metrics of each model, attacked and fine-tuned on its own."""
  return [
    {'attacked': toy.attacked(s).card.metrics, 'ft': toy.defended(s)}
    for s in _SEEDS
  ]


@functools.cache
def _victims() -> tuple:
  """(world, victims, their names) of all seeds."""
  artefacts = [toy.attacked(seed) for seed in _SEEDS]
  here = world.of_card(artefacts[0].card, cli.Context(toy.folder('attacked')))
  return here, [world.victim(a, here) for a in artefacts]


def snippet(text: str) -> str:
  """The block of Python that follows the mark `<!-- api -->`."""
  found = re.search(r'<!-- api -->\s*```python\n(.*?)```', text, re.S)
  if found is None or not found.group(1).strip():
    raise AssertionError(
      'README.md has no line `<!-- api -->` followed by a block of Python; it '
      'marks the example that must give the numbers of the launchers.'
    )
  return found.group(1)


class ApiTest(absltest.TestCase):
  def test_the_readme_gives_the_numbers_of_the_launchers(self):
    code = snippet((toy.HOME / 'README.md').read_text(encoding='utf-8'))
    self.assertLessEqual(len([x for x in code.splitlines() if x.strip()]), 15)
    out, names = io.StringIO(), {}
    with contextlib.redirect_stdout(out), toy.compiled_once():
      exec(compile(code, 'README.md', 'exec'), names)
    printed = [ast.literal_eval(line) for line in out.getvalue().splitlines()]
    single = _singles()[0]
    self.assertEqual(printed[0], single['attacked'])
    self.assertEqual(printed[1], single['ft'].card.metrics)
    here, _ = _victims()
    stored = world.load_model(single['ft'], here)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
      stored,
      names['defended'].model,
    )


class SweepTest(parameterized.TestCase):
  def test_the_runs_can_tell_a_difference(self):
    singles = _singles()
    asr = [s['ft'].card.metrics['asr'] for s in singles]
    before = [s['attacked']['asr'] for s in singles]
    self.assertGreater(len(set(asr)), 1)
    self.assertNotEqual(asr, before)
    ids = {s['ft'].card.run_id for s in singles}
    self.assertLen(ids, len(singles))

  @parameterized.parameters('vmap', 'map', 'loop', 'shard')
  def test_defending_a_stack_is_defending_each(self, mode):
    store = toy.folder(f'stack-{mode}')
    for seed in _SEEDS:
      toy.copy_of(toy.attacked(seed), store.name)
    with toy.compiled_once():
      made, _ = toy.quiet(
        defend.main, toy.ft_config(mode), cli.Context(store), 'attacked'
      )
    by_id = {artefact.card.run_id: artefact for artefact in made}
    records = zoo.records.read(store / 'records.jsonl')
    self.assertLen(records, len(_SEEDS))
    for single in _singles():
      # How a stack was run is no part of a run's identity.
      artefact = by_id[single['ft'].card.run_id]
      self.assertEqual(artefact.card.metrics, single['ft'].card.metrics)
    for record in records:
      metrics = by_id[record['run_id']].card.metrics
      self.assertEqual(_rates(record), _rates(metrics))
      self.assertEqual((record['exec_mode'], record['pack_size']), (mode, 4))

  @parameterized.parameters('vmap', 'map', 'loop', 'shard')
  def test_evaluating_a_stack_is_evaluating_each(self, mode):
    _, victims = _victims()
    counts = _count_all(mode)
    for i, victim in enumerate(victims):
      row = eval.rates(tree.take(counts, i))
      self.assertEqual(row, victim.artefact.card.metrics)


def _count_all(mode):
  """Counts [m] of all attacked models."""
  here, victims = _victims()
  test = here.dataset.test

  def one(member, images, labels):
    model, state = member
    return eval.count(
      here.classifier,
      model,
      images,
      labels,
      stamp=functools.partial(victims[0].attack.stamp, state),
      relabel=victims[0].attack.relabel,
      key=world.stamp_key(),
    )

  stack = tree.stack([(v.model, v.state) for v in victims])
  return sweep.over_checkpoints(
    one,
    stack,
    np.asarray(test.images),
    np.asarray(test.labels),
    exec=types.Exec(mode=mode),
  )


if __name__ == '__main__':
  absltest.main()
