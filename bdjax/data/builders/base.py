"""What all our TFDS builders share: they must work without TensorFlow.

TFDS 4.9 prepares array_record data sets without TensorFlow if (1) images are
given already encoded or as PIL images, since it encodes arrays with
TensorFlow, (2) it need not unpack tar archives, and (3) nobody asks for the
builder's `code_path`, which imports a package that TFDS does not declare
(tensorflow/datasets, issue 11212). TFDS's own CIFAR builders break all three;
`cifar` writes the same data set instead.
"""

import pathlib
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base class: array_record, examples in a fixed order with running ids.

  Attributes:
    URL: one of the official archives, to see whether there is a network.
    manual: folder of files fetched by hand; None downloads.
  """

  URL = ''
  code_path = None
  manual: pathlib.Path | None = None

  def _describe(
    self,
    *,
    description: str,
    homepage: str,
    labels: tfds.features.ClassLabel,
    image: tfds.features.Image,
    **extra: tfds.features.ClassLabel,
  ) -> tfds.core.DatasetInfo:
    """Metadata with the features id, image and label."""
    features = {'id': tfds.features.Text(), 'image': image, 'label': labels}
    return tfds.core.DatasetInfo(
      builder=self,
      description=description,
      features=tfds.features.FeaturesDict(features | extra),
      supervised_keys=('image', 'label'),
      homepage=homepage,
      # Records stay in sample order, whoever reads them.
      disable_shuffling=True,
    )

  def _generate_examples(
    self, split: str, examples: Iterable[dict]
  ) -> Iterator[tuple[int, dict]]:
    """Numbers the examples: key 0, 1, …, id 'train_00000', ….

    Args:
      split: prefix of the ids.
      examples: features other than 'id', in sample order.

    Yields:
      (key, example).
    """
    for index, example in enumerate(examples):
      yield index, {'id': f'{split}_{index:05d}'} | example
