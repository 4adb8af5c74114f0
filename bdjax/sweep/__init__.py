"""The same function over many models: written for one, lifted to a stack.

`over_checkpoints(fn, stack, *data)` runs it at once; `lift(fn)` keeps the
compiled program for further calls. How it runs is `types.Exec`, which never
changes what is computed.
"""

from bdjax.sweep.over_checkpoints import Lifted as Lifted
from bdjax.sweep.over_checkpoints import chunk_for as chunk_for
from bdjax.sweep.over_checkpoints import lift as lift
from bdjax.sweep.over_checkpoints import over_checkpoints as over_checkpoints
from bdjax.sweep.seeds import member_keys as member_keys
