# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The parts, inside your own training loop
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ssdd-jax/ssdd_jax/blob/main/notebooks/library.ipynb)
#
# Everything that moves a distilled set is a pure function of arrays. This notebook uses some of them under `jit`, `vmap` and `grad`, in loops that are written here:
#
# | function | what it does |
# |---|---|
# | `fit_pca`, `encode`, `decode` | bases of images or representations, and the coefficients in them |
# | `apply_views` | predefined augmentations: rotations, flips, zooms, shifts |
# | `krr_predict` | kernel ridge regression in closed form, with a scaled ridge that is increased where it has to be |
# | `expand` | the pairs that a distilled set stands for |
# | `make_outer_step` | one step of the distillation, with its pool of networks |

# %%
# Only where the package is missing; the runtime keeps its own jax.
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ssdd_jax") is None:
    get_ipython().run_line_magic("pip", 'install -q "ssdd-jax[plots] @ git+https://github.com/ssdd-jax/ssdd_jax"')

# %%
from functools import partial
from importlib import metadata

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

import ssdd_jax
from ssdd_jax import (
    Layout,
    apply_views,
    decode,
    encode,
    expand,
    factored,
    feature_kernel,
    fit_pca,
    init_distilled,
    init_outer,
    krr_predict,
    make_learner,
    make_outer_step,
)

# Last run with Python 3.11, ssdd_jax 0.1.0, jax 0.10.2, flax 0.12.8, on two CPU cores.
print("ssdd_jax", ssdd_jax.__version__, "jax", jax.__version__, "flax", metadata.version("flax"), jax.devices())

# %% tags=["parameters"]
STEPS = 100
SEEDS = 2
NUM_IMAGES = 10
WIDTH = 16
LEARNED_STEPS = 100

# %% [markdown]
# ## Data, and a teacher
#
# Any function that maps images to vectors is a teacher. Here it is a random projection of whitened pixels, so that nothing has to be trained first.

# %%
digits = load_digits()
images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
images = (images - images.mean()) / images.std()
x, x_test = images[:1400], images[1400:]
pca = jax.jit(partial(fit_pca, num_components=20))(x.reshape(len(x), -1))
projection = jax.random.normal(jax.random.key(0), (20, WIDTH)) / jnp.sqrt(20)


@jax.jit
def teacher(batch):
    return encode(batch.reshape(len(batch), -1), pca.mean, pca.bases) / jnp.sqrt(pca.variances[:20]) @ projection


reprs, test_reprs = teacher(x), teacher(x_test)
print(reprs.shape, "mean", float(reprs.mean()), "standard deviation", float(reprs.std()))

# %% [markdown]
# ## Bases: `fit_pca`, `encode`, `decode`
#
# Twenty numbers per digit instead of sixty-four.

# %%
flat = x[:8].reshape(8, -1)
again = decode(encode(flat, pca.mean, pca.bases), pca.mean, pca.bases).reshape(8, 8, 8)
fig, axes = plt.subplots(2, 8, figsize=(8, 2))
for k in range(8):
    for axis, picture in zip(axes[:, k], (x[k, ..., 0], again[k]), strict=True):
        axis.imshow(picture, cmap="gray")
        axis.axis("off")
plt.show()

# %% [markdown]
# ## Views: `apply_views`
#
# One array per view. How far does the teacher's representation move under each of them, as a share of its variance?

# %%
names = ("identity", "rot90", "rot180", "hflip", "shift_left")
moved = jnp.stack([teacher(view) for view in apply_views(x, names)])
shifts = jnp.mean((moved - moved[0]) ** 2, (1, 2)) / jnp.var(moved[0])
print({name: round(float(shift), 2) for name, shift in zip(names, shifts, strict=True)})

# %% [markdown]
# ## The regression: `krr_predict`, and a gradient through it to your own parameters
#
# From ten images and their representations it predicts those of all others. It is differentiable in all of its arguments, so it fits into somebody else's
# model: here one weight per pixel is learned, by the error of the regression, in a loop with an optimizer of your choice.


# %%
def features(weights, batch):
    return (batch * jax.nn.softplus(weights)).reshape(len(batch), -1)


def error(weights, batch, targets):
    predicted = krr_predict(features(weights, x[:NUM_IMAGES]), reprs[:NUM_IMAGES], features(weights, batch), ridge=1e-3)
    return jnp.mean((predicted - targets) ** 2) / jnp.var(targets)


optimizer = optax.adam(0.05)


@jax.jit
def learn(weights, state, key):
    rows = jax.random.randint(key, (128,), NUM_IMAGES, len(x))
    loss, gradient = jax.value_and_grad(error)(weights, x[rows], reprs[rows])
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(weights, updates), state, loss


weights = jnp.zeros((8, 8, 1))
state, before = optimizer.init(weights), error(weights, x_test, test_reprs)
for i in range(LEARNED_STEPS):
    weights, state, _ = learn(weights, state, jax.random.fold_in(jax.random.key(1), i))
print(f"error on test images {before:.3f} -> {error(weights, x_test, test_reprs):.3f}")
plt.figure(figsize=(2.5, 2.5))
plt.imshow(jax.nn.softplus(weights)[..., 0])
plt.title("weight of a pixel")
plt.axis("off")
plt.show()

# %% [markdown]
# ## The outer step in your loop: `make_outer_step`, and `vmap` over seeds
#
# The set starts from real images, as bases and coefficients. A state holds arrays only, so that it stacks: all seeds take their steps together.

# %%
layout = Layout(image_shape=(8, 8, 1), base_shape=(8, 8, 1))
stores = dict(image_store=factored(fit_pca(x.reshape(len(x), -1), 16)), repr_store=factored(fit_pca(reprs, 12)))
kernel = feature_kernel(make_learner("convnet", (8, 16), (8, 8, 1), WIDTH))
settings = dict(kernel=kernel, optimizer=optax.adam(2e-2), inner_optimizer=optax.sgd(0.1, 0.9))
outer_step = make_outer_step(max_age=20, **settings)


def begin(seed):
    first, second = jax.random.split(jax.random.key(seed))
    rows = jax.random.permutation(first, len(x))[:NUM_IMAGES]
    start = init_distilled(x[rows], reprs[rows][None], layout, **stores)
    return init_outer(second, start, pool_size=2, **settings)


@partial(jax.jit, donate_argnums=0)
def step(states, i):
    def one(state, seed):
        key = jax.random.fold_in(jax.random.key(seed), i)
        rows = jax.random.randint(key, (128,), 0, len(x))
        return outer_step(state, x[rows], reprs[rows], key)

    return jax.vmap(one)(states, jnp.arange(SEEDS))


states = jax.jit(jax.vmap(begin))(jnp.arange(SEEDS))
losses = []
for i in range(STEPS):
    states, metrics = step(states, i)
    losses.append(metrics["loss"])
plt.figure(figsize=(5, 2.5))
plt.plot(jnp.stack(losses))
plt.xlabel("step")
plt.ylabel("loss, a line per seed")
plt.show()

# %% [markdown]
# ## The pairs: `expand`

# %%
pictures, targets = jax.vmap(expand)(states.distilled)
print("seeds, views, images:", pictures.shape, targets.shape)
fig, axes = plt.subplots(SEEDS, NUM_IMAGES, figsize=(NUM_IMAGES, SEEDS), squeeze=False)
for row, of_seed in zip(axes, pictures[:, 0], strict=True):
    for axis, picture in zip(row, of_seed, strict=True):
        axis.imshow(picture[..., 0], cmap="gray")
        axis.axis("off")
plt.show()

# %% [markdown]
# Stores, kernels, methods, protocols and networks of your own take one object and one registration, and then serve in configs as well:
# [how the code is laid out](https://github.com/ssdd-jax/ssdd_jax/blob/main/docs/layout.md).
