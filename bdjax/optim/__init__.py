"""Optimizers, schedules, SAM, displacements, hypergradients, balance."""

from bdjax.optim.adam import adam as adam
from bdjax.optim.amsgrad import AmsgradState as AmsgradState
from bdjax.optim.amsgrad import amsgrad as amsgrad
from bdjax.optim.amsgrad import scale_by_amsgrad as scale_by_amsgrad
from bdjax.optim.displacement import displacement as displacement
from bdjax.optim.implicit import hypergradient as hypergradient
from bdjax.optim.min_norm import min_norm_weight as min_norm_weight
from bdjax.optim.sam import asam_perturbation as asam_perturbation
from bdjax.optim.sam import sam as sam
from bdjax.optim.schedules import Schedule as Schedule
from bdjax.optim.schedules import constant as constant
from bdjax.optim.schedules import cosine_epochs as cosine_epochs
from bdjax.optim.schedules import cosine_steps as cosine_steps
from bdjax.optim.schedules import step_epochs as step_epochs
from bdjax.optim.sgd import scale_by_clock as scale_by_clock
from bdjax.optim.sgd import sgd as sgd
