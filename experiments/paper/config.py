"""The config of one run of the paper's tables: --config experiments/paper/config.py:FILE.json, a file that `experiments.paper` writes."""

import json
from pathlib import Path

from ssdd_jax.cli import load_config
from ssdd_jax.settings.presets import AUTOMATIC, PRESETS, smoke, to_config, two_core_labels
from ssdd_jax.settings.spec import DataSpec

VIEWS = {"views": PRESETS["ours"].views}
# What the ablation takes away from `ours`, as changes of its settings; the views are the paper's whatever the config has.
ABLATED = {
    "stored_views": {**VIEWS, "view_targets": ("stored",) * 4},
    "no_bases": {
        **VIEWS,
        "image_bases": 0,
        "repr_bases": 0,
        "base_size": 0,
        "frequencies": 0,
        "view_targets": ("stored", "network", "network", "network"),
    },
}


def get_config(variant=""):
    run = json.loads(Path(variant).read_text())
    config = load_config(run["base"])
    for name, changes in ABLATED.items():
        config.methods[name] = to_config({**config.methods["ours"].to_dict(), **changes})
    config.methods.auto = to_config(AUTOMATIC)
    if not run["base"].startswith("cifar100"):
        # cifar100 has its own.
        two_core_labels(config)
    if run["base"].endswith(":smoke"):
        smoke(config)
        # The budgets stay those of the table, and label sets start from images of every class.
        config.data.limit = max(config.data.limit, 20 * run["num_pairs"])
    config.num_pairs = run["num_pairs"]
    if run["source"]:
        config.data.source = run["source"]
    config.evaluation.update(only=",".join(run["students"]), controls=("none", "teacher", "full"))
    settings = dict(size=run["size"], channels=run["channels"], fit="resize", validation=0.0)
    config.evaluation.datasets = to_config({label: DataSpec(source, **settings) for label, source in run["targets"].items()})
    config.only, config.seeds = ",".join(run["methods"]), tuple(run["seeds"])
    return config
