"""What a re-activation has to learn, and what is to be measured with it.

A plan consists of runs, each of which learns one trigger, and cells, each of
which asks what a trigger achieves in one setting. How the two hang together is
what methods differ in: most learn anew in every setting; the transfer attack
learns on other models and is then tried on all; QRA learns once per defended
model.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from bdjax import keys, reactivation, tree, types, zoo
from launch import lineage, methods, retuning, world

controls = reactivation.controls


class Run(NamedTuple):
  """One trigger to be learned.

  Attributes:
    method: the attack, made for the network it learns on.
    model: the model it starts from.
    extra: models beside it.
    inputs: what its pool carries, 'triggered' or 'clean'.
    name: for messages.
  """

  method: types.Reactivation
  model: types.ModelState
  extra: Any
  inputs: str
  name: str


class Cell(NamedTuple):
  """One rate to be measured: what a run achieves in a setting.

  Attributes:
    setting: which inputs on which kind of model.
    classifier: that model's network.
    model: its weights.
    children: numbers of the defended models it belongs to.
    run: number of the run.
  """

  setting: controls.Setting
  classifier: types.Classifier
  model: types.ModelState
  children: Iterable[int]
  run: int = -1


class Anew:
  """A run of its own for each cell, on the cell's own model and inputs.

  Attributes:
    settings: what a method adds to the identity of its artefacts.
  """

  settings: dict[str, Any] = {}

  def __init__(
    self, config, context, method: methods.Method, family, clean_model
  ):
    self.config, self.context, self.hp = config, context, method.hp
    # Equal networks share an attack, and with it a stack.
    self.make = method.make
    self.key = keys.stream(keys.root(config.seed), 'pool')
    self.family, self.clean_model = family, clean_model
    all_six = config.get('grid', False)
    self.grid = controls.GRID if all_six else controls.REQUIRED

  def parents_of(self, child: lineage.Child) -> tuple[zoo.Artefact, ...]:
    """Artefacts that an attack on this child stands on beside its own."""
    del child
    return ()

  def plan(self, children) -> tuple[list[Run], list[Cell]]:
    """What is to be learned, and what is to be measured with it."""
    cells = self.cells(children)
    runs = [
      Run(
        self.make(cell.classifier),
        cell.model,
        {},
        cell.setting.inputs,
        cell.setting.field,
      )
      for cell in cells
    ]
    return runs, [cell._replace(run=i) for i, cell in enumerate(cells)]

  def cells(self, children) -> list[Cell]:
    """All settings; those off the defended model once for all children."""
    network, cells = self.family.here.classifier, []
    once = {'clean': self.clean_model, 'attacked': self.family.victim.model}
    for setting in self.grid:
      if setting.model == 'defended':
        cells += [
          Cell(setting, child.classifier, child.model, (i,))
          for i, child in enumerate(children)
        ]
      else:
        model, all_of_them = once[setting.model], range(len(children))
        cells.append(Cell(setting, network, model, all_of_them))
    return cells

  def draw(self, inputs: str) -> reactivation.pools.Pool:
    """The images a run learns from."""
    victim, train = self.family.victim, self.family.here.dataset.train
    return controls.pool_of(
      inputs,
      self.key,
      victim.attack,
      victim.state,
      train.images,
      train.labels,
      self.hp.pool_size,
    )


class Transfer(Anew):
  """One run per choice of surrogates and inputs, tried on all its models."""

  def __init__(self, config, *args):
    super().__init__(config, *args)
    self.settings = {'surrogates': config.surrogates}

  def parents_of(self, child: lineage.Child) -> tuple[zoo.Artefact, ...]:
    """The surrogates."""
    return tuple(other.artefact for other in self.surrogates_of(child))

  def plan(self, children) -> tuple[list[Run], list[Cell]]:
    """Models with the same surrogates share their runs."""
    runs: list[Run] = []
    numbers: dict[tuple, int] = {}
    cells = []
    for i, child in enumerate(children):
      others = self.surrogates_of(child)
      for cell in self.cells([child]):
        inputs = cell.setting.inputs
        choice = (*(o.artefact.card.run_id for o in others), inputs)
        if choice not in numbers:
          numbers[choice] = len(runs)
          runs.append(self._run(others, inputs))
        cells.append(cell._replace(run=numbers[choice], children=(i,)))
    return runs, cells

  def _run(self, others, inputs) -> Run:
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
    # The attack looks at no model but the surrogates; any fills the carry.
    return Run(method, others[0].model, extra, inputs, inputs)

  def surrogates_of(self, child: lineage.Child) -> list[lineage.Child]:
    """The first defended models of the family other than the child itself.

    Raises:
      ValueError: if there are too few.
    """
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
        'learn from; name more by --parents, or lower '
        f'--config.method.num_surrogates={wanted}.'
      )
    return others


class Qra(Anew):
  """One run per defended model, tried on it and on the clean model."""

  def __init__(self, config, context, *args):
    super().__init__(config, context, *args)
    self.twins = retuning.Twins(context)

  def parents_of(self, child: lineage.Child) -> tuple[zoo.Artefact, ...]:
    """The retuned twin that is imitated."""
    return (self.twins.of(child),)

  def plan(self, children) -> tuple[list[Run], list[Cell]]:
    """As many runs as children."""
    here, runs, cells = self.family.here, [], []
    for i, child in enumerate(children):
      method = self.make(
        child.classifier,
        retuned_classifier=child.classifier,
        clean_classifier=here.classifier,
      )
      retuned = world.load_model(self.twins.of(child), here)
      extra = {'retuned': retuned, 'clean': self.clean_model}
      name = child.artefact.card.method
      runs.append(Run(method, child.model, extra, 'triggered', name))
      cells += [
        cell._replace(run=i, children=(i,)) for cell in self.cells([child])
      ]
    return runs, cells

  def draw(self, inputs: str) -> reactivation.pools.Pool:
    """Clean and triggered images, whatever the inputs."""
    del inputs
    victim, train = self.family.victim, self.family.here.dataset.train
    return reactivation.pools.qra(
      self.key,
      victim.attack,
      victim.state,
      train.images,
      train.labels,
      num_clean=self.hp.num_clean,
      num_poisoned=self.hp.num_poisoned,
    )


_OTHERS = {'transfer': Transfer, 'qra': Qra}


def of(name: str) -> type[Anew]:
  """The plan of a method."""
  return _OTHERS.get(name, Anew)
