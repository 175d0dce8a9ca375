"""Draws the pictures of docs/concepts.md from a finished run of `make demo`: python docs/pictures/draw.py runs/digits."""

import sys
from math import prod
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ssdd_jax import expand, load_distilled
from ssdd_jax.cli import load_config
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.registry import METHODS
from ssdd_jax.report.figures import COLOURS
from ssdd_jax.settings.parse import to_spec

# Equal runs give equal files: ids and dates would differ.
plt.rcParams.update({"svg.hashsalt": "ssdd_jax", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
FOLDER = Path(__file__).parent
IMAGE = 5  # of the set, the one that is taken apart


def save(figure, name):
    figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def draw_method():
    """What is computed in one step of the outer loop, and afterwards."""
    figure, axes = plt.subplots(figsize=(11, 5.2))
    axes.set(xlim=(0, 110), ylim=(-1, 50))
    axes.axis("off")

    def box(x, y, width, text, colour):
        axes.add_patch(FancyBboxPatch((x, y), width, 8, boxstyle="round,pad=0.6", facecolor=colour + "26", edgecolor=colour))
        axes.text(x + width / 2, y + 4, text, ha="center", va="center")

    def arrow(start, end, text="", at=None, bend=0.0, **style):
        style = dict(arrowstyle="-|>", mutation_scale=14, color="#444444", shrinkA=0, shrinkB=0) | style
        axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **style))
        axes.text(*(at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 1)), text, ha="center", va="bottom")

    blue, red, green, pink = COLOURS[:4]
    box(1, 40, 19, "a batch of\nreal images", green)
    box(34, 40, 19, "teacher", green)
    box(88, 40, 20, "teacher's\nrepresentations", green)
    box(1, 22, 19, "distilled set:\nbases, coefficients", blue)
    box(34, 22, 19, "images and targets\nunder all views", blue)
    box(63, 22, 18, "kernel ridge\nregression", pink)
    box(88, 22, 20, "predictions\nfor the batch", pink)
    box(34, 4, 19, "a pool of\nstudents", pink)
    arrow((20.8, 44), (33.2, 44))
    arrow((53.8, 44), (87.2, 44))
    arrow((20.8, 26), (33.2, 26), "expand")
    arrow((53.8, 26), (62.2, 26))
    arrow((81.8, 26), (87.2, 26))
    arrow((98, 39.2), (98, 30.8), "squared\nerror", at=(103, 33))
    arrow((16, 39.2), (66, 30.8), "features", at=(60, 33))
    arrow((53.8, 8), (72, 21.2), "features", at=(70, 9), bend=0.2)
    arrow((43.5, 21.2), (43.5, 12.8), "train", at=(47, 15.5))
    axes.plot([98, 98, 10.5], [21.2, 0, 0], color=red, linestyle="--")
    arrow((10.5, 0), (10.5, 21.2), color=red, linestyle="--")
    axes.text(76, 1, "gradient: moves the set", color=red, ha="center", va="bottom")
    save(figure, "method")


def draw_bases(run):
    """One image of a set as its mean, plus coefficients times bases."""
    distilled = load_distilled(run / "distilled" / "basis" / "seed_0")
    images = np.asarray(expand(distilled)[0][0])
    store, (h, w, _) = distilled.images, distilled.layout.base_shape
    coefficients, bases = np.asarray(store.coefficients)[IMAGE], np.asarray(store.bases)
    shown = np.argsort(-np.abs(coefficients), kind="stable")[:5]
    panels = [("mean", np.asarray(store.mean), "")]
    factor = lambda k: f"{coefficients[k]:+.2f} \N{MULTIPLICATION SIGN}".replace("-", "\N{MINUS SIGN}")
    panels += [(f"base {k + 1}", bases[k], factor(k)) for k in shown]
    panels += [(f"image, with all {len(bases)}", images[IMAGE], "+ ... =")]
    figure, row = plt.subplots(1, len(panels), figsize=(13, 1.6))
    for axes, (title, values, sign) in zip(row, panels, strict=True):
        bound = np.abs(values).max()
        centred = title.startswith("base")
        axes.imshow(values.reshape(h, w), cmap="RdBu_r" if centred else "gray", **(dict(vmin=-bound, vmax=bound) if centred else {}))
        axes.set_title(title, fontsize=11)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(sign, rotation=0, labelpad=22, va="center")
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.subplots_adjust(wspace=0.75)
    save(figure, "bases")


def draw_budget():
    """What the numbers of the paper's budget on CIFAR-100 hold, by method."""
    spec = to_spec(load_config("cifar100"))
    sizes = Sizes(spec.num_pairs, (32, 32, 3), 512, 100, dict.fromkeys(("rot90", "rot180", "rot270"), 1.0))
    parts = ("images", "bases and means of images", "representations", "bases and means of representations", "networks")
    figure, axes = plt.subplots(figsize=(9, 2.6))
    names = ("krr_st", "raw_small", "basis", "ours")
    for row, name in enumerate(names):
        method = spec.methods[name]
        plan = METHODS["regression"].plan(name, method, sizes)
        m, u, v, h = plan.num_images, method.image_bases, method.repr_bases, method.hidden
        p, d, networks = prod(plan.layout.base_shape), sizes.repr_width, plan.layout.count("network")
        counts = (m * (u or p), (u + 1) * p if u else 0, m * (v or d), (v + 1) * d if v else 0, networks * (2 * v * h + h + v))
        assert sum(counts) == plan.stored_scalars, (name, counts, plan)
        left = 0
        for part, (count, colour) in enumerate(zip(counts, COLOURS, strict=False)):
            axes.barh(row, count, left=left, color=colour, label=parts[part] if row == 0 else None)
            left += count
        pairs = f"{m} images" + (f", {m * len(plan.layout.views)} pairs" if len(plan.layout.views) > 1 else "")
        axes.text(sizes.budget * 1.01, row, pairs, va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.6), xlabel="numbers stored, of 358,400", xlim=(0, sizes.budget * 1.22))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=10)
    save(figure, "budget")


if __name__ == "__main__":
    draw_method()
    draw_bases(Path(sys.argv[1]))
    draw_budget()
