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
# # Your own images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ssdd-jax/ssdd_jax/blob/main/notebooks/your_images.ipynb)
#
# From a folder of photographs to a handful of distilled images, and to a network in PyTorch that is trained on them. Labels are not needed; where images lie in one folder per
# class, they are used to measure.

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
from IPython.display import Image as ShownImage
from IPython.display import display
from PIL import Image
from sklearn.datasets import load_digits

import ssdd_jax
from ssdd_jax.data import validation_rows
from ssdd_jax.data.__main__ import main as check

# Last run with Python 3.11, ssdd_jax 0.1.0, jax 0.10.2, flax 0.12.8, torch 2.13, on two CPU cores.
print("ssdd_jax", ssdd_jax.__version__, "jax", jax.__version__, "flax", metadata.version("flax"), jax.devices())

# %% [markdown]
# ## Settings
#
# `FOLDER` is `FOLDER/CLASS/*.png` (or jpg, webp, ...), or images without classes in `FOLDER` itself; on Colab, upload it or mount a Drive. An empty one is filled with digits, so
# that this notebook runs as it is. All images are brought to `SIZE` pixels.

# %% tags=["parameters"]
FOLDER = "photos"
SIZE = 12
TEACHER_STEPS = 100
STEPS = 100
NUM_PAIRS = 10
TORCH_STEPS = 100

# %%
if not Path(FOLDER).is_dir():
    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images[:800], digits.target[:800], strict=True)):
        file = Path(FOLDER, f"digit_{label}", f"{number:04}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 15.9).astype(np.uint8)).resize((16, 16), Image.Resampling.BICUBIC).save(file)

# %% [markdown]
# ## Look first
#
# `check` says what was found (splits, classes, sizes, statistics), warns about what will hurt, and draws a contact sheet. On the command line: `python -m ssdd_jax.data check folder:photos --size 12
# --sheet sheet.png`.

# %%
check(["check", f"folder:{FOLDER}", "--size", str(SIZE), "--sheet", "sheet.png"])
display(ShownImage("sheet.png"))

# %% [markdown]
# ## Read
#
# Decoded and resized once, then memory-mapped. A fifth of the images is set apart to measure on.

# %%
dataset = ssdd_jax.load_dataset(f"folder:{FOLDER}", options=ssdd_jax.Options(size=SIZE))
stored = next(iter(dataset.splits.values()))
rows, test_rows = validation_rows(len(stored.images), 0.2, groups=stored.groups)
x, x_test = np.array(stored.images[rows]), np.array(stored.images[test_rows])
y, y_test = (None, None) if stored.labels is None else (stored.labels[rows], stored.labels[test_rows])
print(x.shape, x_test.shape, dataset.class_names)

# %% [markdown]
# ## Distil
#
# The teacher's views crop at random; for photographs leave the colours to change and the flip, which are on by default, and take more steps. With `workdir` the same cell goes on
# where it was interrupted, and the set lies there with its manifest.

# %%
view = dict(flip=0.0, min_crop_scale=0.5, jitter=0.0, blur=0.0, gray=0.0, solarize=0.0)
settings = dict(widths=(16, 32), batch_size=128, projector_width=64, first_view=view, second_view=view)
teacher = ssdd_jax.pretrain_teacher(x, steps=TEACHER_STEPS, workdir="run", **settings)
distilled = ssdd_jax.distill(
    x,
    teacher,
    method="krr_st",
    num_pairs=NUM_PAIRS,
    learning_rate=0.03,
    steps=STEPS,
    student={"widths": (8, 16)},
    pool={"size": 2, "max_age": 40},
    workdir="run_krr_st",
)
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
print({name: round(scores[name], 3) for name in ("repr_error", "knn") if name in scores})

# %% [markdown]
# ## Export
#
# Plain files, with the normalisation in the manifest: `safetensors`, `npz`, `png`, or `pt` for PyTorch.

# %%
ssdd_jax.export_distilled("run_krr_st/distilled/krr_st/seed_0", "export", "npz")
export = np.load("export/export.npz")
print({name: (export[name].dtype.str, export[name].shape) for name in export.files})
pictures = export["images_uint8"].reshape(-1, *x.shape[1:])
fig, axes = plt.subplots(1, len(pictures), figsize=(len(pictures), 1.2), squeeze=False)
for axis, picture in zip(axes[0], pictures, strict=True):
    axis.imshow(picture.squeeze(), cmap="gray")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train in PyTorch
#
# Where PyTorch is installed, as on Colab. The network sees the distilled pairs and nothing else; its features are then read by the nearest neighbour among the real images.

# %%
if importlib.util.find_spec("torch") is None:
    print("no PyTorch here: pip install torch")
else:
    import torch
    from torch import nn

    as_torch = lambda array: torch.from_numpy(np.array(array, np.float32))
    x_syn = as_torch(export["images"].reshape(-1, *x.shape[1:])).permute(0, 3, 1, 2)
    y_syn = as_torch(export["targets"].reshape(len(x_syn), -1))
    block = lambda width: nn.Sequential(nn.LazyConv2d(width, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AvgPool2d(2))
    net = nn.Sequential(block(16), block(32), nn.Flatten(), nn.LazyLinear(y_syn.shape[1]))
    net(x_syn)  # gives the lazy layers their sizes
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(TORCH_STEPS):
        loss = nn.functional.mse_loss(net(x_syn), y_syn)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    print(f"loss {loss.item():.4f}")
    # The same normalisation as the distilled images have.
    mean, std = x.mean((0, 1, 2)) / 255, x.std((0, 1, 2)) / 255
    with torch.inference_mode():
        represent = lambda images: net.eval()(as_torch((images / 255 - mean) / std).permute(0, 3, 1, 2))
        nearest = torch.cdist(represent(x_test), represent(x)).argmin(1).numpy()
    if y is not None:
        print(f"nearest neighbour: {100 * np.mean(y[nearest] == y_test):.1f} % of the test images")

# %% [markdown]
# The command line does the same with every method and all protocols: `python -m ssdd_jax.main --config arrays --config.data.source=folder:photos
# --config.data.size=32 --config.data.test=0.2 --workdir runs/photos`.
