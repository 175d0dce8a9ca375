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
# # On a GPU or TPU, with stops in between
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ssdd-jax/ssdd_jax/blob/main/notebooks/colab_tpu.ipynb)
#
# Choose a runtime with a GPU or TPU (Runtime > Change runtime type). Colab ends sessions when it pleases; a run whose folder lies on your Drive goes on from its last checkpoint in the next
# session, and ends with the same numbers as one that was never interrupted. Networks run in bfloat16, batches are spread over all devices. The notebook also runs on a CPU, small
# and without a Drive.

# %%
# Only where the package is missing; the runtime keeps its own jax.
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ssdd_jax") is None:
    get_ipython().run_line_magic("pip", 'install -q "ssdd-jax[plots] @ git+https://github.com/ssdd-jax/ssdd_jax"')

# %%
from importlib import metadata
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import ssdd_jax

# Last run with Python 3.11, ssdd_jax 0.1.0, jax 0.10.2, flax 0.12.8, on two CPU cores; not yet on a TPU.
print("ssdd_jax", ssdd_jax.__version__, "jax", jax.__version__, "flax", metadata.version("flax"), jax.devices())

# %% [markdown]
# ## Settings
#
# Small, so that a CPU does it in a minute. On an accelerator take `SOURCE = "cifar100"` (`!python -m ssdd_jax.data download cifar100 --data_dir data` fetches it), `NUM_PAIRS = 100`, and
# tens of thousands of steps; the config `cifar100` has the paper's settings.

# %% tags=["parameters"]
WORKDIR = "ssdd_jax/first"
ON_DRIVE = importlib.util.find_spec("google.colab") is not None if importlib.util.find_spec("google") else False
SOURCE = "digits"
TEACHER_STEPS = 60
STEPS = 60
STOP_AT = 25
BATCH_PER_DEVICE = 64
NUM_PAIRS = 20

# %%
if ON_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    workdir = Path("/content/drive/MyDrive", WORKDIR)
else:
    workdir = Path(WORKDIR)
print("the run is kept in", workdir)

# %% [markdown]
# ## All devices, bfloat16
#
# A batch is a multiple of the number of devices. `precision` is that of the networks' products and activations; the regression stays in float32 whatever it is. On a CPU bfloat16 saves nothing, so
# that it is left out there.

# %%
accelerated = jax.default_backend() != "cpu"
precision = "bfloat16" if accelerated else "tensorfloat32"
batch_size = BATCH_PER_DEVICE * jax.device_count()
print(jax.device_count(), "x", jax.devices()[0].device_kind, precision, "batches of", batch_size)

# %%
dataset = ssdd_jax.load_dataset(SOURCE)
x, y = np.array(dataset.splits["train"].images), dataset.splits["train"].labels
x_test, y_test = np.array(dataset.splits["test"].images), dataset.splits["test"].labels
print(x.shape, x_test.shape)

# %% [markdown]
# ## Teacher
#
# It is pretrained once: run again, the cell reads it from the folder. Checkpoints are written every 1,000 steps, and every 5 minutes at least.

# %%
view = dict(flip=0.0, min_crop_scale=0.5, jitter=0.0, blur=0.0, gray=0.0, solarize=0.0) if SOURCE == "digits" else {}
pretraining = dict(
    widths=(16, 32), steps=TEACHER_STEPS, batch_size=batch_size, projector_width=64, precision=precision, first_view=view, second_view=view
)
teacher = ssdd_jax.pretrain_teacher(x, workdir=workdir / "teacher", **pretraining)

# %% [markdown]
# ## A stop
#
# The callback plays the session that ends: it interrupts after `STOP_AT` steps, as the stop button does. The step is saved, and the set that it has got to is returned.

# %%
seen = []


def disconnect(step, metrics):
    seen.append((step, metrics["loss"]))
    if step == STOP_AT:
        raise KeyboardInterrupt


settings = dict(
    method="krr_st",
    num_pairs=NUM_PAIRS,
    steps=STEPS,
    learning_rate=0.03,
    outer={"batch_size": batch_size, "precision": precision},
    student={"widths": (8, 16)},
    pool={"size": 2, "max_age": 20},
    workdir=workdir / "krr_st",
)
partial = ssdd_jax.distill(x, teacher, callback=disconnect, **settings)
print("steps so far:", seen[-1][0])

# %% [markdown]
# ## And on
#
# In the next session, run all cells again: this one starts from the saved step. A session that ends without a warning loses at most the steps since the last checkpoint.

# %%
distilled = ssdd_jax.distill(x, teacher, callback=lambda step, metrics: seen.append((step, metrics["loss"])), **settings)
steps, losses = zip(*seen, strict=True)
print("steps:", steps[0], "...", steps[-1], "each once:", sorted(steps) == list(range(steps[0], STEPS + 1)))
plt.figure(figsize=(5, 2.5))
plt.plot(steps, losses)
plt.axvline(STOP_AT, color="gray", linestyle=":")
plt.xlabel("step; dotted: the stop")
plt.ylabel("loss")
plt.show()

# %%
pictures, reprs = ssdd_jax.expand(distilled)
fig, axes = plt.subplots(1, 10, figsize=(10, 1.2))
for axis, picture in zip(axes, pictures[0], strict=False):
    low, high = float(picture.min()), float(picture.max())
    axis.imshow((np.asarray(picture).squeeze() - low) / (high - low), cmap="gray")
    axis.axis("off")
plt.show()
scores = ssdd_jax.evaluate(
    distilled,
    x,
    y,
    eval_images=x_test,
    eval_labels=y_test,
    teacher=teacher,
    student={"widths": (8, 16)},
    updates=100,
    protocols=("knn",),
    progress=False,
)
print({name: round(scores[name], 3) for name in ("repr_error", "knn")})

# %% [markdown]
# The command line keeps a run in the same way, with all methods and tables. In a cell: `!python -m ssdd_jax.main --config cifar100 --workdir /content/drive/MyDrive/ssdd_jax/cifar100
# --config.outer.precision=bfloat16`; started again, it goes on.
