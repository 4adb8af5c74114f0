"""Triggers: functions of one image in [0, 1] that several attacks share."""

from bdjax.attacks.triggers import blend as blend
from bdjax.attacks.triggers import color as color
from bdjax.attacks.triggers import frequency as frequency
from bdjax.attacks.triggers import levels as levels
from bdjax.attacks.triggers import patch as patch
