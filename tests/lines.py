"""A network that compiles quickly."""

from contextlib import contextmanager

from flax import linen as nn

from ssdd_jax.nets import NETS, Net
from ssdd_jax.nets.layers import Linear


class Line(nn.Module):
    """A linear layer on pixels."""

    num_outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        features = x.reshape(len(x), -1)
        return features, Linear(self.num_outputs)(features)


@contextmanager
def line_registered():
    """Let settings name it "line"."""
    NETS.register("line", Net(lambda widths, num_outputs, pooled: Line(num_outputs), lambda shape: (1,)))
    try:
        yield
    finally:
        NETS.remove("line")
