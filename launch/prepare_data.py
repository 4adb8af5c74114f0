"""Prepares a data set for training, which itself never downloads.

python -m launch.prepare_data --dataset=cifar10 --data_dir=DIR
"""

from absl import flags

from bdjax.data import builders
from launch import cli, show

DATASET = flags.DEFINE_string('dataset', None, 'Data set to prepare.')
MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', None, 'Folder of archives downloaded by hand.'
)


def main(config, context: cli.Context) -> None:
  """Downloads or unpacks one data set."""
  del config
  if not DATASET.value:
    raise ValueError('--dataset is empty; name one, such as --dataset=cifar10.')
  folder = builders.prepare(
    DATASET.value, data_dir=context.data_dir, manual_dir=MANUAL_DIR.value
  )
  show.done(f'{DATASET.value} is prepared in {folder}')


if __name__ == '__main__':
  cli.run(main)
