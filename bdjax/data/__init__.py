"""Data: uint8 arrays of images, their splits, and training augmentation.

`load(name)` gives a Dataset(spec, train, test) of NumPy arrays, made on the
spot ('synthetic', 'digits16', 'digits32') or read from a prepared folder and
decoded once into a cache. Downloading is apart: `bdjax.data.builders.prepare`,
which `python -m launch.prepare_data` calls.
"""

from bdjax.data.augment import augment_fn as augment_fn
from bdjax.data.augment import bilinear as bilinear
from bdjax.data.augment import crop_flip as crop_flip
from bdjax.data.augment import post_tensor_fn as post_tensor_fn
from bdjax.data.augment import rotate as rotate
from bdjax.data.augment import to_float as to_float
from bdjax.data.catalog import REGISTRY as REGISTRY
from bdjax.data.catalog import Entry as Entry
from bdjax.data.catalog import load as load
from bdjax.data.catalog import spec as spec
from bdjax.data.pictures import read_picture as read_picture
from bdjax.data.places import MissingDataError as MissingDataError
from bdjax.data.splits import Dataset as Dataset
from bdjax.data.splits import Split as Split
from bdjax.data.splits import exclude as exclude
from bdjax.data.splits import reserve_clean as reserve_clean
from bdjax.data.splits import subset as subset
from bdjax.data.tfds_source import in_torchvision_order as in_torchvision_order
