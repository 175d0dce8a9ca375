"""The settings of a run. Nothing here imports jax."""
