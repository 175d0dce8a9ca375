"""Networks. Flax modules stay inside this package: `make_learner` turns one into plain functions."""

from ssdd_jax.nets.learner import check_no_batch_norm, make_learner, net_widths, student_learner
from ssdd_jax.nets.net import Net
from ssdd_jax.nets.torch_weights import variables_from_torch
from ssdd_jax.registry import NETS

__all__ = ["NETS", "Net", "check_no_batch_norm", "make_learner", "net_widths", "student_learner", "variables_from_torch"]
