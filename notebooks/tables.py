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
# # Tables and plots of a finished run
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ssdd-jax/ssdd_jax/blob/main/notebooks/tables.ipynb)
#
# A run writes `results.json`: one row per method, student, dataset and seed. All tables are made of it, and so can yours be.

# %%
# Only where the package is missing; the runtime keeps its own jax.
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ssdd_jax") is None:
    get_ipython().run_line_magic("pip", 'install -q "ssdd-jax[plots] @ git+https://github.com/ssdd-jax/ssdd_jax"')

# %%
import statistics
from pathlib import Path
from urllib.request import urlretrieve

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

import ssdd_jax
from ssdd_jax.report import read_results, results_tables, score_columns, summarize, to_markdown

# Last run with Python 3.11, ssdd_jax 0.1.0, matplotlib 3.11.
print("ssdd_jax", ssdd_jax.__version__)

# %% [markdown]
# ## Settings
#
# Your own runs, by a label for each: `{"mine": "runs/mine/results.json"}`. By default two runs of this project on the same data, at two budgets: 99 emoji drawn by several
# vendors, 32 x 32 pixels, three seeds.

# %% tags=["parameters"]
RUNS = {"N = 10": "experiments/results/emoji_n10.json", "N = 50": "experiments/results/emoji_n50.json"}
SCORE = "linear"
REPOSITORY = "https://raw.githubusercontent.com/ssdd-jax/ssdd_jax/main"


# %%
def find(path):
    """Return a results file: here, in a checkout around this notebook, or from the repository."""
    for folder in (Path(), Path("..")):
        if (folder / path).is_file():
            return folder / path
    return Path(urlretrieve(f"{REPOSITORY}/{path}", Path(path).name)[0])


runs = {label: read_results(find(path)) for label, path in RUNS.items()}
for label, results in runs.items():
    about = results["dataset"]
    print(
        f"{label}: {about['name']}, {about['image_shape']}, {len(results['rows'])} rows, {results['budget']['scalars']:,} numbers per set"
    )

# %% [markdown]
# ## The tables of the report

# %%
for label, results in runs.items():
    for title, (header, rows) in results_tables(results).items():
        display(Markdown(f"**{label}: {title}**\n\n{to_markdown(header, rows)}"))

# %% [markdown]
# ## A table of your own
#
# A row is a dictionary; what a method has not is not in it. Here: each seed next to its mean.

# %%
results = next(iter(runs.values()))
methods = list(dict.fromkeys(row["method"] for row in results["rows"] if SCORE in row))
seeds = sorted({row["seed"] for row in results["rows"]})
lines = []
for method in methods:
    by_seed = {row["seed"]: 100 * row[SCORE] for row in results["rows"] if row["method"] == method and SCORE in row}
    lines.append(
        [method, *(f"{by_seed[seed]:.1f}" if seed in by_seed else "–" for seed in seeds), f"{statistics.fmean(by_seed.values()):.1f}"]
    )
display(Markdown(to_markdown(["method", *(f"seed {seed}" for seed in seeds), "mean"], lines)))

# %% [markdown]
# ## A point per method
#
# `summarize` averages over seeds: a score becomes its mean and its sample standard deviation.

# %%
columns = score_columns(results)
fig, axes = plt.subplots(1, len(runs), figsize=(5 * len(runs), 3.5), sharey=True, squeeze=False)
for axis, (label, of_run) in zip(axes[0], runs.items(), strict=True):
    rows = [row for row in summarize(of_run["rows"], columns) if SCORE in row]
    means = [100 * row[SCORE]["mean"] for row in rows]
    spreads = [100 * (row[SCORE]["std"] or 0) for row in rows]
    axis.errorbar(means, [row["method"] for row in rows], xerr=spreads, fmt="o", capsize=3)
    axis.set(title=label, xlabel=f"{SCORE}, %")
    axis.grid(axis="y", alpha=0.3)
axes[0, 0].invert_yaxis()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## What a larger budget buys
#
# The error in predicting the teacher's representation, which distillation optimises; lower is better.

# %%
budgets = [results["budget"]["num_pairs"] for results in runs.values()]
errors = {}
for results in runs.values():
    for row in summarize(results["rows"], score_columns(results)):
        if "repr_error" in row:
            errors.setdefault(row["method"], []).append(
                (results["budget"]["num_pairs"], row["repr_error"]["mean"], row["repr_error"]["std"] or 0)
            )
plt.figure(figsize=(5, 3.5))
for method, points in errors.items():
    numbers, means, spreads = zip(*points, strict=True)
    plt.errorbar(numbers, means, spreads, marker="o", capsize=3, label=method)
plt.xscale("log")
plt.xticks(budgets, budgets)
plt.minorticks_off()
plt.xlabel("budget N, in pairs of an image and a representation")
plt.ylabel("repr_error")
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# `python -m ssdd_jax.main --task=report --workdir DIR` writes the same tables, with pictures, as `DIR/report/results.md`.
