"""Triggers: functions of one image in [0, 1] that several attacks share."""

from bdjax.attacks.triggers import blend as blend
from bdjax.attacks.triggers import color as color
from bdjax.attacks.triggers import corners as corners
from bdjax.attacks.triggers import depth as depth
from bdjax.attacks.triggers import edges as edges
from bdjax.attacks.triggers import frequency as frequency
from bdjax.attacks.triggers import glass as glass
from bdjax.attacks.triggers import levels as levels
from bdjax.attacks.triggers import low_pass as low_pass
from bdjax.attacks.triggers import patch as patch
from bdjax.attacks.triggers import warp as warp
