"""Models to start from (--parents), and the defenses made for them."""

from absl import flags

from bdjax import checks, registry, types, zoo
from launch import imported, world

PARENTS = flags.DEFINE_string(
  'parents', None, 'Attacked models: a pattern, or several joined by commas.'
)


def knows_trigger(entry: registry.Entry) -> bool:
  """Whether a method is made with its victim's own trigger."""
  return 'trigger_known' in entry.info.needs


def make_defense(
  entry: registry.Entry, here: world.World, hp, victim: world.Victim
) -> types.Defense:
  """A method on a world's network, with the victim's trigger if it needs it."""
  if knows_trigger(entry):
    card = victim.artefact.card if victim.artefact else None
    if card is not None and imported.is_imported(card):
      raise checks.Unsupported(
        f'it is made with the trigger itself, and {card.name} was imported '
        'with triggered images only; train the attack with launch.attack.'
      )
    return entry.make(here.classifier, hp, stamp=victim.stamp)
  return entry.make(here.classifier, hp)


def find(config, context, pattern: str | None, stage: str) -> list:
  """Artefacts that match a pattern, alike and of the config's data set.

  Raises:
    ValueError: without a pattern, or if models or data sets do not go
      together.
  """
  if not pattern:
    raise ValueError(
      f'--parents is empty; name the models to start from, such as '
      f"--parents='{zoo.cards.KIND_OF_STAGE[stage]}/*'."
    )
  found = zoo.find(context.workdir, pattern, stage=stage)
  zoo.check_alike([artefact.card for artefact in found])
  dataset = found[0].card.dataset
  if config.dataset != dataset:
    raise ValueError(
      f"The config holds the values of dataset='{config.dataset}', but the "
      f"parents were trained on '{dataset}'; add ':dataset={dataset}' to "
      '--config.'
    )
  return found
