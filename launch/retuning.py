"""Re-activations that change the model and fire the plain trigger."""

import functools
from collections.abc import Sequence

from bdjax import eval, keys, reactivation, sweep, training, tree, types, zoo
from launch import cli, lineage, measure, methods, results, show

METHOD = 'retuning_attack'


class Attack:
  """One method on one family; the clean model is attacked beside it."""

  def __init__(
    self, config, context, method: methods.Method, family, clean_model
  ):
    del context
    self.title, self.method, self.hp = config.name, method, method.hp
    self.key = keys.root(config.seed)
    self.family, self.clean_model = family, clean_model
    self.settings = {'method': self.hp}

  def parents_of(self, child: lineage.Child) -> tuple:
    """No artefacts beside the child's own."""
    del child
    return ()

  def run(self, children: Sequence[lineage.Child]) -> list[measure.Finding]:
    """One finding per child."""
    network = self.family.here.classifier
    members = [(child.classifier, child.model) for child in children]
    members.append((network, self.clean_model))  # the control, last
    found: list = [None] * len(members)
    groups = {id(classifier): classifier for classifier, _ in members}
    with show.bar(f'{self.title} · {len(members)} models') as (on_chunk, _):
      for classifier in groups.values():
        rows = [i for i, (c, _) in enumerate(members) if c is classifier]
        models = [members[i][1] for i in rows]
        retuned = self.retune(classifier, models, on_chunk)
        for row, result in zip(rows, retuned, strict=True):
          found[row] = result
    control = found.pop()[1]['asr']
    return [
      self.finding(child, result, control)
      for child, result in zip(children, found, strict=True)
    ]

  def retune(self, classifier, models, on_chunk) -> list[tuple]:
    """(model, its rates, curves) of each model of one network."""
    attack = self.method.make(classifier, augment=self.family.here.augment)
    carry, curves = self.method.learn(
      attack,
      types.Carry(model=tree.stack(models), extra={}),
      {'pool': self.pool()},
      self.key,
      on_chunk=on_chunk,
    )
    rates = [eval.rates(c) for c in self.counts(classifier, carry.model)]
    return [
      (tree.take(carry.model, i), rates[i], tree.take(curves, i))
      for i in range(len(models))
    ]

  def counts(self, classifier, stack) -> list[dict]:
    """What the plain trigger achieves on a stack of retuned models."""
    family = self.family
    counts = sweep.over_checkpoints(
      _counting(classifier),
      stack,
      *family.here.test,
      family.victim.shown,
      exec=self.method.exec,
    )
    return tree.unstack(counts)

  def pool(self) -> training.Feed:
    """The mostly clean images that all models are retuned on."""
    victim, train = self.family.victim, self.family.here.dataset.train
    pool = reactivation.pools.retuning(
      keys.stream(self.key, 'pool'),
      victim.attack,
      victim.state,
      train.images,
      train.labels,
      split_ratio=self.hp.split_ratio,
      poison_num=self.hp.poison_num,
    )
    return training.make_feed(pool.images, pool.labels)

  def finding(self, child, result, control) -> measure.Finding:
    """One child's record and its retuned model."""
    model, rates, curves = result
    card = child.artefact.card
    before = card.metrics
    record = {
      **{name: rates[name] for name in ('c_acc', 'asr', 'r_acc', 'finite')},
      **{f'base_{k}': before[k] for k in ('c_acc', 'asr', 'r_acc')},
      'o_asr': before['asr'],
      'p_asr': rates['asr'],
      'control_clean_model_asr': control,
      'reactivation_budget': self.hp.poison_num,
    }
    line = (
      f'{self.title} on {card.method} {card.name}: ASR {before["asr"]:.4f} → '
      f'{rates["asr"]:.4f} with {self.hp.poison_num} poisoned images, C-Acc '
      f'{before["c_acc"]:.4f} → {rates["c_acc"]:.4f}; control: clean model '
      f'{control:.4f}'
    )
    arrays = results.flat_curves(curves)
    metrics = {'p_asr': rates['asr'], 'c_acc': rates['c_acc']}
    metrics['control_clean_model_asr'] = control
    return measure.Finding(record, line, metrics, arrays, {'model': model})


@functools.lru_cache(maxsize=8)
def _counting(classifier: types.Classifier):
  """(model, images, labels, shown) -> counts; one program for all attacks."""

  def count(model, images, labels, shown):
    return eval.count(classifier, model, images, labels, shown=shown)

  return count


class Twins:
  """The newest retuned twin of each defended model; read at the first ask."""

  def __init__(self, context: cli.Context):
    self.context = context

  @functools.cached_property
  def known(self) -> dict[str, zoo.Artefact]:
    """By the run_id of the defended model."""
    try:
      found = zoo.find(
        self.context.workdir, 'reactivated', stage='reactivate', method=METHOD
      )
    except FileNotFoundError:
      return {}
    found = sorted(found, key=lambda artefact: artefact.card.time_utc)
    return {artefact.card.parents[0]: artefact for artefact in found}

  def of(self, child: lineage.Child) -> zoo.Artefact:
    """The twin of a child.

    Raises:
      ValueError: if there is none, with the command that makes one.
    """
    card = child.artefact.card
    if card.run_id not in self.known:
      raise ValueError(
        f'{card.name} has not been retuned. First run: python -m '
        'launch.reactivate --config=configs/reactivation/retuning_attack.py:'
        f'dataset={card.dataset} --parents={card.name} '
        f'--workdir={self.context.workdir}'
      )
    return self.known[card.run_id]
