"""Everything on disk: checkpoints, cards, records, progress.

A run's name is a digest of what decides its numbers (`digest`); its folder is
written whole or not at all (`artefacts`, `store`); it is found again by
pattern (`query`), a crafted asset by its recipe (`assets`); what was measured
is one line of JSON (`records`); how far an unfinished run got survives a kill
(`progress`). Only `store` knows Orbax.
What others trained comes in through `torch_files`, which runs no code of a
file, `torch_states`, `backdoorbench` and `triggered`.
"""

from bdjax.zoo import artefacts as artefacts
from bdjax.zoo import assets as assets
from bdjax.zoo import backdoorbench as backdoorbench
from bdjax.zoo import cards as cards
from bdjax.zoo import digest as digest
from bdjax.zoo import environment as environment
from bdjax.zoo import files as files
from bdjax.zoo import progress as progress
from bdjax.zoo import query as query
from bdjax.zoo import records as records
from bdjax.zoo import store as store
from bdjax.zoo import tables as tables
from bdjax.zoo import torch_files as torch_files
from bdjax.zoo import torch_states as torch_states
from bdjax.zoo import triggered as triggered
from bdjax.zoo.artefacts import Artefact as Artefact
from bdjax.zoo.artefacts import exists as exists
from bdjax.zoo.artefacts import load_arrays as load_arrays
from bdjax.zoo.artefacts import load_config as load_config
from bdjax.zoo.artefacts import load_metrics as load_metrics
from bdjax.zoo.artefacts import load_state as load_state
from bdjax.zoo.artefacts import names as names
from bdjax.zoo.artefacts import open as open
from bdjax.zoo.artefacts import verify as verify
from bdjax.zoo.artefacts import write as write
from bdjax.zoo.cards import Card as Card
from bdjax.zoo.digest import run_id as run_id
from bdjax.zoo.files import CorruptArtefactError as CorruptArtefactError
from bdjax.zoo.progress import Progress as Progress
from bdjax.zoo.query import check_alike as check_alike
from bdjax.zoo.query import find as find
from bdjax.zoo.query import load_stack as load_stack
from bdjax.zoo.records import record as record
from bdjax.zoo.store import load_tree as load_tree
from bdjax.zoo.store import save_tree as save_tree
