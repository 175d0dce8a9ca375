"""The config of one run of experiments/ablation.py: --config experiments/ablation_config.py:FILE.json, a file that it writes."""

import json
from pathlib import Path

from ssdd_jax.cli import load_config
from ssdd_jax.settings.presets import smoke, to_config


def get_config(variant=""):
    run = json.loads(Path(variant).read_text())
    config = load_config(run["base"])
    config.methods = to_config({name: {**config.methods[like].to_dict(), **changes} for name, (like, changes) in run["methods"].items()})
    if run["source"]:
        config.data.source = run["source"]
    for name, value in run["run"].items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    if run["smoke"]:
        smoke(config)
        config.pool.size = max(config.pool.size, config.pool.members_per_step)
    config.evaluation.update(split=run["split"], controls=("teacher",))
    config.only, config.seeds = "", tuple(run["seeds"])
    return config
