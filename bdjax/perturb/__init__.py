"""Input perturbations: projections, a kind clip, descent, search, inversion."""

from bdjax.perturb.clip import clip_unit as clip_unit
from bdjax.perturb.generated import attacker_loss as attacker_loss
from bdjax.perturb.generated import identity_loss as identity_loss
from bdjax.perturb.generated import normalized_mse as normalized_mse
from bdjax.perturb.generated import replace_share as replace_share
from bdjax.perturb.inversion import InversionHParams as InversionHParams
from bdjax.perturb.inversion import LaneState as LaneState
from bdjax.perturb.inversion import Patch as Patch
from bdjax.perturb.inversion import blend as blend
from bdjax.perturb.inversion import found_patch as found_patch
from bdjax.perturb.inversion import invert_step as invert_step
from bdjax.perturb.inversion import squash as squash
from bdjax.perturb.inversion import start_lane as start_lane
from bdjax.perturb.inversion import step_lane as step_lane
from bdjax.perturb.per_image import project_each as project_each
from bdjax.perturb.per_image import sign_descent as sign_descent
from bdjax.perturb.projections import NORMS as NORMS
from bdjax.perturb.projections import Norm as Norm
from bdjax.perturb.projections import project as project
from bdjax.perturb.projections import project_l1_exact as project_l1_exact
from bdjax.perturb.square import SquareSearch as SquareSearch
from bdjax.perturb.square import square_search as square_search
from bdjax.perturb.square_windows import SQUARE_NORMS as SQUARE_NORMS
from bdjax.perturb.square_windows import SquareNorm as SquareNorm
from bdjax.perturb.universal import init_uniform as init_uniform
from bdjax.perturb.universal import universal_descent as universal_descent
