"""The method as pure functions. Imports jax, flax.struct, optax and jaxtyping only."""
