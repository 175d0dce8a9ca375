"""Networks. Flax modules stay inside this package: `make_learner` turns one into plain functions."""

from ssdd_jax.nets.learner import NETS, make_learner

__all__ = ["NETS", "make_learner"]
