"""Measures the backdoor existence coefficient of defended models.

python -m launch.existence --config=configs/existence/bec.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import existence, keys, sweep, tree
from launch import cli, lineage, measure, starts, world


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Measures every defended model that has not been measured.

  Args:
    config: see configs/existence/bec.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  parents = parents or starts.PARENTS.value
  made = []
  for one, variant in cli.variants(config):
    made += _one_setting(one, context, parents, variant)
  return made


def _one_setting(config, context, parents, variant) -> list:
  """All models with one share p and one set of images."""
  names = ('p', 'num_tac', 'num_cka', 'debiased')
  settings = {name: config[name] for name in names}
  made = []
  for family in lineage.families(config, context, parents):
    clean, model = lineage.clean_model(context, family.here, 'launch.existence')
    made += measure.run(
      'existence',
      config,
      context,
      settings,
      family,
      lambda children, family=family, model=model: _similarities(
        config, family, model, children
      ),
      others=lambda _, clean=clean: (clean,),
      variant=variant,
    )
  return made


def _similarities(config, family, clean_state, children):
  """One finding per child: the reference once, similarities as a stack."""
  images, triggered, *_ = world.triggered_test(family.here, family.victim)
  idx_tac, idx_cka = existence.draw_indices(
    keys.root(config.seed),
    len(images),
    num_tac=config.num_tac,
    num_cka=config.num_cka,
  )
  classifier = family.here.classifier
  reference = _reference(classifier, config.p)(
    family.victim.model,
    jnp.asarray(images[idx_tac]),
    jnp.asarray(triggered[idx_tac]),
    jnp.asarray(triggered[idx_cka]),
  )
  exec, pool = cli.execution(config), jnp.asarray(triggered[idx_cka])

  def compare(deployed, states):
    one = _similarity(deployed, config.debiased)
    return sweep.over_checkpoints(one, states, reference, pool, exec=exec)

  cka_clean = compare(classifier, tree.stack([clean_state]))[0]
  arrays = {
    'idx_tac': idx_tac,
    'idx_cka': idx_cka,
    **{f'tac/{tap}': v for tap, v in reference.tac.items()},
    **{f'idx/{tap}': v for tap, v in reference.indices.items()},
  }
  findings = []
  for deployed, members in _by_classifier(children):
    rows = compare(deployed, tree.stack([child.model for child in members]))
    for child, row in zip(members, rows, strict=True):
      values = _fields(config, row, cka_clean)
      metrics = values | {'taps': list(reference.taps)}
      findings.append(
        measure.Finding(values, _line(child, values), metrics, arrays)
      )
  return findings


@functools.lru_cache(maxsize=4)
def _reference(classifier, p):
  """`existence.reference` of one network, compiled for all victims."""
  return jax.jit(
    lambda state, clean, bad, pool: existence.reference(
      classifier, state, clean, bad, pool, p=p
    )
  )


@functools.lru_cache(maxsize=16)
def _similarity(deployed, debiased):
  """`existence.similarity` of one network, (state, reference, pool) -> cka."""
  return lambda state, ref, pool: existence.similarity(
    deployed, ref, state, pool, debiased=debiased
  )


def _by_classifier(children):
  """Children grouped by what they deploy, in order of appearance."""
  groups = []
  for child in children:
    if groups and groups[-1][0] is child.classifier:
      groups[-1][1].append(child)
    else:
      groups.append((child.classifier, [child]))
  return groups


def _fields(config, cka_defended, cka_clean) -> dict:
  """The record fields of one defended model."""
  values = jax.device_get(existence.bec(cka_defended, cka_clean))
  return {
    **{k: np.asarray(v).tolist() for k, v in values.items()},
    'cka_defended': np.asarray(cka_defended).tolist(),
    'cka_clean': np.asarray(cka_clean).tolist(),
    'debiased': config.debiased,
  }


def _line(child, values) -> str:
  card = child.artefact.card
  return (
    f'{card.method} {card.name}: ASR {card.metrics["asr"]:.4f}, '
    f'BEC {values["bec"]:.4f} (raw {values["bec_raw"]:.4f})'
  )


if __name__ == '__main__':
  cli.run(main, 'configs/existence/bec.py')
