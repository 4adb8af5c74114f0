"""Crafting that is too long for its attack's own file."""

from bdjax.attacks.crafting import neurons as neurons
from bdjax.attacks.crafting import universal as universal
