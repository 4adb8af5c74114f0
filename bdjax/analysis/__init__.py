"""Read-only measurements of models, and the figures made from them.

`cka` compares representations, `tac` finds the channels a trigger moves,
`quality` says how much a trigger shows, `plots`, `charts` and `gallery` draw
arrays onto matplotlib axes, `stream` cuts images into batches.
"""

from bdjax.analysis import charts as charts
from bdjax.analysis import cka as cka
from bdjax.analysis import gallery as gallery
from bdjax.analysis import plots as plots
from bdjax.analysis import quality as quality
from bdjax.analysis import stream as stream
from bdjax.analysis import tac as tac
