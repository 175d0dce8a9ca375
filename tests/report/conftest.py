"""A finished run, written by hand: two seeds of 'ours' (factors, three views) and of 'krr_st' (plain pixels, one view)."""

import copy
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.approximation import Networks
from ssdd_jax.core.distilled import DistilledSet, Layout
from ssdd_jax.core.stores.factored import Factors
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.io.artifacts import save_distilled
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.report.nearest import COUNT, Nearest, write_nearest

SHAPE, WIDTH = (8, 8, 1), 6
LAYOUTS = {
    "ours": Layout(SHAPE, (4, 4, 1), ("identity", "rot90", "dim"), ("stored", "network", "shared")),
    "krr_st": Layout(SHAPE, SHAPE),
}
NUM_IMAGES = {"ours": 12, "krr_st": 3}
SCORES = {
    ("ours", 0): {"repr_error": 0.2, "linear": 0.75, "few_1": 0.5, "seconds": 10.0},
    ("ours", 1): {"repr_error": 0.1, "linear": 0.77, "few_1": 0.6, "seconds": 13.0},
    ("krr_st", 0): {"repr_error": 1.25, "linear": 0.6, "few_1": 0.3, "seconds": 1234.0},
    ("krr_st", 1): {"repr_error": 1.25, "linear": 0.6, "few_1": 0.3, "seconds": 1236.0},
}
CONTROLS = {
    ("teacher_init", None, 0): {"linear": 0.55, "few_1": 0.25},
    ("teacher_init", None, 1): {"linear": 0.55, "few_1": 0.25},
    ("teacher", None, 0): {"linear": 0.9, "few_1": 0.8},
    ("teacher", None, 1): {"linear": 0.9, "few_1": 0.8},
    ("none", "convnet", 0): {"linear": 0.4, "few_1": 0.2},
    ("none", "convnet", 1): {"linear": 0.5, "few_1": 0.2},
}
STORED = {"ours": 200, "krr_st": 210}
RESULTS = {
    "name": "toy run",
    "dataset": {"name": "toy", "fingerprint": "f" * 64, "image_shape": list(SHAPE), "num_classes": 10, "split": "test"},
    "budget": {"num_pairs": 3, "scalars": 210},
    "teacher": {"repr_width": WIDTH, "shifts": {"rot90": 1.3, "dim": 0.02}},
    "rows": [
        *(
            {
                "method": method,
                "seed": seed,
                "student": "convnet",
                "dataset": "toy",
                "split": "test",
                "num_images": NUM_IMAGES[method],
                "num_views": len(LAYOUTS[method].views),
                "views": list(LAYOUTS[method].views),
                "view_targets": list(LAYOUTS[method].view_targets),
                "stored_scalars": STORED[method],
                "steps": 2000,
                "approximation": {"rot90": 0.6 + 0.2 * seed} if method == "ours" else None,
                "digest": "d",
                **scores,
            }
            for (method, seed), scores in SCORES.items()
        ),
        *(
            {"method": method, "student": student, "dataset": "toy", "split": "test", "seed": seed, "digest": "d", **scores}
            for (method, student, seed), scores in CONTROLS.items()
        ),
    ],
}


@pytest.fixture
def results():
    return copy.deepcopy(RESULTS)


def draw_set(method, seed=0):
    random = np.random.RandomState(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    layout, num_images = LAYOUTS[method], NUM_IMAGES[method]
    if method == "krr_st":
        return DistilledSet(Plain(draw(num_images, *SHAPE)), Plain(draw(1, num_images, WIDTH)), None, layout)
    return DistilledSet(
        images=Factors(mean=draw(16), bases=draw(5, 16), coefficients=draw(num_images, 5)),
        reprs=Factors(mean=draw(WIDTH), bases=draw(4, WIDTH), coefficients=draw(1, num_images, 4)),
        networks=Networks(w1=draw(1, 4, 2), b1=draw(1, 2), w2=draw(1, 2, 4), b2=draw(1, 4)),
        layout=layout,
    )


@pytest.fixture
def make_set():
    return draw_set


@pytest.fixture
def workdir(tmp_path, results):
    for method, seed in SCORES:
        normalization = {"mean": [0.25], "std": [0.5]}
        save_distilled(tmp_path / "distilled" / method / f"seed_{seed}", draw_set(method, seed), normalization=normalization)
    lines = [{"stage": "teacher", "step": 50, "loss": 7.0}]
    for step in (50, 100, 150):
        lines.append({"stage": "distill/ours/seeds_0_1", "step": step, "seeds": [0, 1], "loss": [100 / step, 300 / step]})
        lines += [{"stage": f"distill/krr_st/seeds_{seed}", "step": step, "loss": [200 / step]} for seed in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_nearest(tmp_path, {method: draw_nearest(tmp_path, method) for method in LAYOUTS})
    return tmp_path


def draw_nearest(workdir, method):
    random, shape = np.random.RandomState(0), (NUM_IMAGES[method], COUNT)
    digest = read_manifest(workdir / "distilled" / method / "seed_0")["sha256"]
    images, rows = random.randint(0, 256, (*shape, *SHAPE), np.uint8), random.randint(0, 1797, shape)
    return Nearest(images, rows, random.uniform(0, 1, shape).astype(np.float32), digest)


@pytest.fixture
def runs(workdir, tmp_path_factory):
    """Two finished runs of the same dataset, of budgets 3 and 6."""
    folder = tmp_path_factory.mktemp("runs")
    for name, num_pairs in (("small", 3), ("large", 6)):
        results = json.loads((workdir / "results.json").read_text())
        results["budget"] = {"num_pairs": num_pairs, "scalars": 70 * num_pairs}
        shutil.copytree(workdir, folder / name)
        (folder / name / "results.json").write_text(json.dumps(results))
    return [folder / "small", folder / "large"]
