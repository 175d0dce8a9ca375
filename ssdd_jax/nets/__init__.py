"""Networks. Flax modules stay inside this package: `make_learner` turns one into plain functions."""

from ssdd_jax.nets.learner import NETS, make_learner, net_widths
from ssdd_jax.nets.torch_weights import variables_from_torch

__all__ = ["NETS", "make_learner", "net_widths", "variables_from_torch"]
