"""Paths between models: evaluation along them, and numbers that sum it up."""

from bdjax.connectivity.barriers import auc as auc
from bdjax.connectivity.barriers import barrier as barrier
from bdjax.connectivity.barriers import summarize as summarize
from bdjax.connectivity.barriers import tau_star as tau_star
from bdjax.connectivity.curves import CURVES as CURVES
from bdjax.connectivity.curves import curve_point as curve_point
from bdjax.connectivity.curves import curve_weights as curve_weights
from bdjax.connectivity.linear import evaluate_at as evaluate_at
from bdjax.connectivity.linear import evaluate_path as evaluate_path
from bdjax.connectivity.linear import point as point
from bdjax.connectivity.linear import positions as positions
