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
# # Quickstart: distil a dataset into a few images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ssdd-jax/ssdd_jax/blob/main/notebooks/quickstart.ipynb)
#
# Self-supervised dataset distillation turns a large set of images without labels into a tiny one: images, and what a self-supervised *teacher* makes of
# them. A network that is pretrained on nothing but these pairs learns a representation close to the teacher's.
#
# This notebook does all of it on scikit-learn's 8 x 8 digits, in about a minute on a CPU: a teacher, two distilled sets, a look at them, and what students learn.

# %%
# Only where the package is missing; the runtime keeps its own jax.
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ssdd_jax") is None:
    get_ipython().run_line_magic("pip", 'install -q "ssdd-jax[plots] @ git+https://github.com/ssdd-jax/ssdd_jax"')

# %%
from importlib import metadata

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import ssdd_jax

# Last run with Python 3.11, ssdd_jax 0.1.0, jax 0.10.2, flax 0.12.8, on two CPU cores.
print("ssdd_jax", ssdd_jax.__version__, "jax", jax.__version__, "flax", metadata.version("flax"), jax.devices())

# %% [markdown]
# ## Settings
#
# Small, so that everything takes a minute. The digits config of the command line takes 300 steps for the teacher and 300 for every set.

# %% tags=["parameters"]
TEACHER_STEPS = 120
STEPS = 120
NUM_PAIRS = 20
STUDENT_UPDATES = 100
SEED = 0

# %% [markdown]
# ## Data
#
# uint8 pixels `(n, H, W, C)`. The labels are only used to measure what was learnt.

# %%
digits = load_digits()
images, labels = (digits.images * 15.9).astype(np.uint8)[..., None], digits.target
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]
print(x.shape, x_test.shape)

# %% [markdown]
# ## Teacher
#
# Barlow Twins: two random views of an image should be represented alike. Digits keep their left and right, and have no colours to change.

# %%
view = dict(flip=0.0, min_crop_scale=0.5, jitter=0.0, blur=0.0, gray=0.0, solarize=0.0)
losses = []
teacher = ssdd_jax.pretrain_teacher(
    x,
    widths=(16, 32),
    steps=TEACHER_STEPS,
    batch_size=128,
    projector_width=64,
    warmup_steps=20,
    first_view=view,
    second_view=view,
    seed=SEED,
    callback=lambda step, metrics: losses.append(metrics["loss"]),
)
plt.figure(figsize=(5, 2.5))
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("Barlow Twins loss")
plt.show()

# %% [markdown]
# ## Distil
#
# Every method stores at most as many numbers as `NUM_PAIRS` images with their representations. `random` takes real images. `ours` keeps images and
# representations as bases and coefficients, so that a pair costs less, and each image has four views: it and its rotations.

# %%
student = {"widths": (8, 16)}
settings = dict(num_pairs=NUM_PAIRS, seed=SEED, student=student)
random = ssdd_jax.distill(x, teacher, method="random", **settings)
losses = []
ours = ssdd_jax.distill(
    x,
    teacher,
    method="ours",
    base_size=8,
    image_bases=16,
    repr_bases=12,
    learning_rate=0.02,
    steps=STEPS,
    outer={"batch_size": 128},
    pool={"size": 2, "max_age": 40},
    callback=lambda step, metrics: losses.append(metrics["loss"]),
    **settings,
)
plt.figure(figsize=(5, 2.5))
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss of the regression")
plt.show()

# %% [markdown]
# ## Look
#
# `expand` gives the pairs: images as they are normalised, and representations.

# %%
pictures, reprs = ssdd_jax.expand(ours)
print("images", pictures.shape, "representations", reprs.shape, "numbers stored", ssdd_jax.num_stored_scalars(ours))
fig, axes = plt.subplots(4, pictures.shape[1], figsize=(pictures.shape[1], 4), squeeze=False)
for row, name, images_of_view in zip(axes, ours.layout.views, pictures, strict=True):
    for axis, picture in zip(row, images_of_view, strict=True):
        axis.imshow(picture[..., 0], cmap="gray")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
plt.show()

# %% [markdown]
# ## Evaluate
#
# A student that has never seen a real image is pretrained on each set. `repr_error` is its error against the teacher on test images, as a share of the
# teacher's variance (lower is better); `knn` is how many test images its nearest neighbours classify correctly.

# %%
reading = dict(
    eval_images=x_test,
    eval_labels=y_test,
    teacher=teacher,
    seed=SEED,
    student=student,
    updates=STUDENT_UPDATES,
    protocols=("knn",),
    progress=False,
)
print(f"{'':>20}  repr_error  k-NN")
for name, distilled in {"no pretraining": "none", "random": random, "ours": ours}.items():
    scores = ssdd_jax.evaluate(distilled, x, y, **reading)
    error = f"{scores['repr_error']:.3f}" if "repr_error" in scores else "–"
    print(f"{name:>20}  {error:>10}  {100 * scores['knn']:.1f} %")

# %% [markdown]
# ## Keep
#
# A folder with a manifest. The means and deviations say how pixels become what students see.

# %%
pixels = x / 255
normalization = {"mean": pixels.mean((0, 1, 2)).tolist(), "std": pixels.std((0, 1, 2)).tolist()}
folder = ssdd_jax.save_distilled("digits_ours", ours, method="ours", normalization=normalization)
again = ssdd_jax.load_distilled(folder)
print(sorted(file.name for file in folder.iterdir()), ssdd_jax.expand(again)[0].shape)

# %% [markdown]
# One seed of small settings says that everything works, not which method is better: `make demo` runs all methods with three seeds. Next: [your own images](your_images.ipynb),
# [the parts inside your own training loop](library.ipynb), [on a GPU or TPU](colab_tpu.ipynb), [tables and plots](tables.ipynb).
