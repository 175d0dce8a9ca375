"""The kernel of a pool member's features (ours, KRR-ST, FRePo)."""

import jax

from ssdd_jax.core.batching import map_in_chunks
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.krr import RidgeScale, append_bias, ridge_predict
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.sharding import Shard, unsharded


def feature_kernel(
    learner: Learner,
    *,
    ridge: float = 1e-6,
    ridge_scale: RidgeScale = "trace",
    bias: bool = True,
    chunk_size: int = 0,
    remat: bool = False,
    shard: Shard = unsharded,
) -> Kernel:
    """Return P = F_t F_s^T (F_s F_s^T + lambda I)^-1 Y_s with F = [f(x), 1], the penultimate features of one member in evaluation mode.

    Without `bias` F is f(x), as FRePo has it.

    Gradients reach the support rows through F_s and Y_s, but never the member or the target images (KRR-ST).

    Args:
        learner: network of the members.
        ridge: see `ssdd_jax.core.krr.krr_predict`.
        ridge_scale: see `ssdd_jax.core.krr.krr_predict`.
        bias: whether a constant 1 is appended to the features, so that the regression has an intercept (KRR-ST).
        chunk_size: how many real and how many support images pass through a member together, see `map_in_chunks`; 0 means all.
        remat: recompute the support images' activations where their gradient is needed, instead of keeping them.
        shard: how rows are sharded over devices.
    """

    def predict(variables, support_images, support_targets, images):
        # Every chunk is sharded, see `replicate_then_shard`.
        features = lambda rows: learner.features(variables, shard("data", rows))
        complete = append_bias if bias else lambda rows: rows
        f_support = complete(map_in_chunks(features, shard("whole", support_images), chunk_size, remat=remat))
        f_target = jax.lax.stop_gradient(complete(map_in_chunks(features, images, chunk_size)))
        return ridge_predict(f_support, support_targets, f_target, ridge=ridge, ridge_scale=ridge_scale)

    return Kernel(predict, learner)
