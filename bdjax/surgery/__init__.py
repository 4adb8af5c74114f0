"""Edits of a model that is not trained: BatchNorm statistics."""

from bdjax.surgery.batch_norm import reestimate_bn as reestimate_bn
