"""Backdoor existence: what a defended model still knows of its backdoor.

`measure` does one triple of models. For a stack of defended models take the
parts: `reference` once on the backdoored model, `similarity` lifted over the
stack, `bec` on the similarities.
"""

from bdjax.existence.bec import BecReference as BecReference
from bdjax.existence.bec import bec as bec
from bdjax.existence.bec import layer_cka as layer_cka
from bdjax.existence.bec import legacy_minmax as legacy_minmax
from bdjax.existence.bec import num_neurons as num_neurons
from bdjax.existence.bec import reference as reference
from bdjax.existence.bec import similarity as similarity
from bdjax.existence.triple import draw_indices as draw_indices
from bdjax.existence.triple import measure as measure
