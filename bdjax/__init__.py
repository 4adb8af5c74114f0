"""bdjax: backdoor learning in JAX, and the instruments behind a low ASR.

Rooms are imported by name, such as `from bdjax import attacks, training`;
importing the package alone loads nothing and touches no device.
"""

__version__ = '0.1.0'
