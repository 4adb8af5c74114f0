"""Attacks: eight of them trained as one stack and one by one."""

import functools

import jax

from bdjax import attacks, data, models, sweep, training, tree, types
from tests.benchmarks import lifted, step_bench, timing

RATIOS = (0.01, 0.02, 0.05, 0.1)


def pack(repeats: int, torch) -> dict:
  """Seconds of eight attacks of two kinds and four ratios, eight steps each."""
  del torch
  spec = data.spec('digits16')
  net = models.make('preactresnet18', spec, width=8)
  images, labels = step_bench.pictures(512, 16)
  feeds = {'train': training.make_feed(images, labels)}
  members = _members(spec, images, labels)
  packed = attacks.pack(members, images, labels, key=timing.key())
  seeds = sweep.member_keys(timing.key(), len(members), shared=False)
  stack = jax.vmap(net.init)(seeds)

  def train(attack, carry, key):
    phases = training.attack_phases(
      net,
      attack,
      training.optimizer(training.RecipeHParams()),
      augment=data.augment_fn(spec),
      name='implant',
      num_epochs=1,
      batch_size=64,
      reads='train',
    )
    return training.run_phases(phases, carry, feeds, key)[0].model

  runs = [
    (
      jax.jit(functools.partial(train, attack)),
      types.Carry(model=tree.take(stack, i), extra=state),
      seeds[i],
    )
    for i, (attack, state) in enumerate(members)
  ]
  carries = types.Carry(model=stack, extra=packed.states)
  together = lambda own: train(packed.attack, *own)
  sides = {'single_runs': lambda: [run(*own) for run, *own in runs]}
  sides |= lifted.sides(together, (carries, seeds), modes=('map',))
  return {
    'what': 'eight attacks, 8 steps, width 8, 16×16, batch 64',
    'unit': 's',
    'per': 1.0,
    'sides': timing.compare(sides, repeats),
  }


def _members(spec, images, labels):
  """BadNets and FTrojan at four ratios, with their states."""
  made = []
  for ratio in RATIOS:
    for make, hparams in (
      (attacks.badnets, attacks.BadNetsHParams),
      (attacks.ftrojan, attacks.FTrojanHParams),
    ):
      attack = make(spec, hparams(poison_ratio=ratio))
      made.append((attack, attack.init(timing.key(), images, labels)))
  return made
