"""The one loop, the phases that most methods are made of, and their losses."""

from bdjax.training.feed import Feed as Feed
from bdjax.training.feed import batch_rows as batch_rows
from bdjax.training.feed import fetch as fetch
from bdjax.training.feed import make_feed as make_feed
from bdjax.training.feed import split_feed as split_feed
from bdjax.training.feed import steps_per_epoch as steps_per_epoch
from bdjax.training.finite import NonFiniteError as NonFiniteError
from bdjax.training.finite import finite_members as finite_members
from bdjax.training.loop import ChunkReport as ChunkReport
from bdjax.training.loop import Snapshots as Snapshots
from bdjax.training.loop import run_phases as run_phases
from bdjax.training.losses import accuracy as accuracy
from bdjax.training.losses import cross_entropy as cross_entropy
from bdjax.training.losses import smoothed_kl as smoothed_kl
from bdjax.training.phases import FitState as FitState
from bdjax.training.phases import descent as descent
from bdjax.training.phases import fit as fit
from bdjax.training.phases import implant as implant
from bdjax.training.phases import supervised as supervised
from bdjax.training.recipe import RecipeHParams as RecipeHParams
from bdjax.training.recipe import optimizer as optimizer
from bdjax.training.recipe import schedule as schedule
from bdjax.training.selection import SELECTORS as SELECTORS
from bdjax.training.selection import last_within as last_within
from bdjax.training.selection import least_asr as least_asr
from bdjax.training.selection import selection as selection
