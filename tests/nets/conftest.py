import jax
import pytest
from flax import linen as nn


@pytest.fixture
def output_sides():
    """Return a function that gives the sides of what modules of a kind return within `fn(*args)`, in order, each once."""

    def sides_of(kind, fn, *args):
        sides = []

        def record(next_call, args, kwargs, context):
            out = next_call(*args, **kwargs)
            if isinstance(context.module, kind):
                sides.append(out.shape[1])
            return out

        with nn.intercept_methods(record):
            jax.eval_shape(fn, *args)
        return list(dict.fromkeys(sides))

    return sides_of
