import json
from dataclasses import replace

import jax
import numpy as np
from quick import VIEWS

from ssdd_jax.core.quantise import quantise
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.report import results_table
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.stages import pipeline


def test_a_run_stores_sets_in_the_bits_that_they_were_distilled_in(tmp_path):
    plain = RegressionSpec(learning_rate=0.1)
    factors = RegressionSpec(image_bases=4, repr_bases=4, views=("identity", "rot90"), view_targets=("stored", "network"), joint=0.5)
    config = default_config(
        plain=plain,
        trained=replace(plain, bits=4),
        end=replace(plain, bits=4, rounding="end"),
        ours=replace(factors, bits=8),
        waves=replace(plain, bits=4, image_bases=4, frequencies=8, factor_scale="each"),
    )
    smoke(config)
    for view, settings in VIEWS.items():
        config.teacher[view].update(settings)
    config.num_pairs = 8
    for name in ("plain", "trained", "end"):
        config.methods[name].images = 8
    config.evaluation.update(only="convnet", protocols=("knn",), controls=("none",))
    results = pipeline.run(to_spec(config), tmp_path)
    sets = {name: load_distilled(tmp_path / "distilled" / name / "seed_0") for name in config.methods}
    equal = lambda one, other: all(map(np.array_equal, *(jax.tree.leaves(s) for s in (one, other))))
    # Rounded at the end, steps are those of floats; what sees the rounding goes elsewhere.
    assert equal(sets["end"], quantise(sets["plain"], 4))
    assert not equal(sets["trained"], sets["end"])
    for name, bits in {"plain": 32, "trained": 4, "end": 4, "ours": 8, "waves": 4}.items():
        manifest = json.loads((tmp_path / "distilled" / name / "seed_0" / "manifest.json").read_text())
        assert manifest["bits"] == bits
        assert manifest["stored_scalars"] <= results["budget"]["scalars"]
    # A row of 32 bits is one of a version that knew no others, so that a run of that version goes on.
    assert {row["method"]: row["bits"] for row in results["rows"] if "bits" in row} == {"trained": 4, "end": 4, "ours": 8, "waves": 4}
    header, rows = results_table(results)
    stored = {row[0]: row[header.index("numbers stored")] for row in rows}
    assert stored["end"].endswith(", in 4 bits")
    assert stored["plain"].endswith("(100.0%)")
