"""Edits of a model that is not trained: channels, BatchNorm statistics."""

from bdjax.surgery.batch_norm import reestimate_bn as reestimate_bn
from bdjax.surgery.channels import Masks as Masks
from bdjax.surgery.channels import apply_channel_mask as apply_channel_mask
from bdjax.surgery.channels import full_masks as full_masks
from bdjax.surgery.channels import keep_above as keep_above
from bdjax.surgery.channels import keep_inliers as keep_inliers
from bdjax.surgery.channels import norm_leaves as norm_leaves
from bdjax.surgery.channels import norm_names as norm_names
from bdjax.surgery.channels import num_pruned as num_pruned
from bdjax.surgery.edits import insert as insert
from bdjax.surgery.head import head_kernel as head_kernel
from bdjax.surgery.head import join_head as join_head
from bdjax.surgery.head import random_head as random_head
from bdjax.surgery.head import scale_kernel as scale_kernel
from bdjax.surgery.head import split_head as split_head
from bdjax.surgery.inputs import check_norm_taps as check_norm_taps
from bdjax.surgery.inputs import norm_inputs as norm_inputs
