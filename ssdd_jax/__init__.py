"""Self-supervised dataset distillation in JAX: the public names.

They are imported on first use, so that `import ssdd_jax` is quick and reading a config needs no jax.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "ssdd_jax.api": ("distill", "evaluate", "list_methods", "list_students", "pretrain_teacher"),
    "ssdd_jax.core.bases": ("PCA", "fit_pca", "encode", "decode"),
    "ssdd_jax.core.views": ("VIEWS", "apply_views"),
    "ssdd_jax.core.krr": ("append_bias", "krr_predict", "solve_labels"),
    "ssdd_jax.core.approximation": ("Networks", "fit_networks", "predict_shift"),
    "ssdd_jax.core.stores.cosine": ("Cosines", "cosine"),
    "ssdd_jax.core.stores.factored": ("Factors", "factored"),
    "ssdd_jax.core.stores.plain": ("Plain",),
    "ssdd_jax.core.distilled": (
        "DistilledSet",
        "Layout",
        "budget_scalars",
        "compress",
        "expand",
        "init_distilled",
        "max_images",
        "num_stored_scalars",
        "reconstruct_images",
        "view_coefficients",
    ),
    "ssdd_jax.core.kernel": ("Kernel",),
    "ssdd_jax.core.learner": ("Learner",),
    "ssdd_jax.core.pool": ("MemberState",),
    "ssdd_jax.core.quantise": ("quantise", "stored_numbers"),
    "ssdd_jax.core.outer": ("OuterState", "init_outer", "make_outer_step", "outer_loss"),
    "ssdd_jax.core.turns": ("in_turn", "init_in_turn"),
    "ssdd_jax.data": ("Dataset", "Options", "load_dataset", "open_source"),
    "ssdd_jax.kernels.feature": ("feature_kernel",),
    "ssdd_jax.kernels.infinite": ("conv_kernel", "fc_kernel", "matrix_kernel"),
    "ssdd_jax.nets": ("make_learner", "variables_from_torch"),
    "ssdd_jax.io.artifacts": ("load_distilled", "save_distilled"),
    "ssdd_jax.io.export": ("export_distilled",),
    "ssdd_jax.io.publish": ("push_to_hub",),
    "ssdd_jax.io.pairs": ("Pairs", "read_pairs"),
    "ssdd_jax.io.torch_files": ("read_state_dict", "read_torch"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    """Import a public name from its home."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ssdd_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__():
    return sorted(__all__)
