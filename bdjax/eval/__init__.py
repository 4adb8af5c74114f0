"""Evaluation: counts over a test set, rates, and ratings of defenses.

The room knows models and labels, not methods: an attack comes in as the two
functions `stamp` and `relabel`. It shadows the builtin `eval` where it is
imported by name, which nothing here uses.
"""

from bdjax.eval.anomaly import anomaly_index as anomaly_index
from bdjax.eval.anomaly import flag_small as flag_small
from bdjax.eval.anomaly import is_few as is_few
from bdjax.eval.anomaly import smallest_index as smallest_index
from bdjax.eval.evaluate import count as count
from bdjax.eval.evaluate import evaluate as evaluate
from bdjax.eval.metrics import der as der
from bdjax.eval.metrics import rates as rates
from bdjax.eval.metrics import rir as rir
from bdjax.eval.views import Triggered as Triggered
from bdjax.eval.views import triggered as triggered
