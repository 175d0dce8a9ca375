"""Print how well students of a run's label sets predict classes, on its test or validation split.

python experiments/label_accuracy.py WORKDIR [test|validation]

A student is pretrained on the set with the recipe of config.evaluation; its largest output is the class. No probe sees training images.
With `krr`, the class is the largest output of the kernel regression from the set on the student's features, as FRePo predicts.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import read_pairs
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.progress import Display
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.student import Compiled, get_student, pretrain


def spread(scores: Iterable[float]) -> str:
    scores = 100 * np.array(list(scores))
    return f"{scores.mean():.1f}" + (f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else "")


def main(workdir: Path, split: str) -> None:
    spec = to_spec(json.loads((workdir / "spec.json").read_text())["settings"])
    data = load_data(spec.data, split)
    images, labels = data.normalize(jnp.asarray(data.eval_images)), jnp.asarray(data.eval_labels)
    accuracy = lambda outputs: float(jnp.mean(jnp.argmax(outputs, -1) == labels))
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(spec, data, Path(scratch), Metrics(Path(scratch) / "metrics.jsonl"), Display(quiet=True))
        for name in spec.methods:
            sets = [read_pairs(workdir / "distilled" / name / f"seed_{seed}") for seed in spec.seeds]
            if sets[0].target_kind != "labels":
                continue
            for label in spec.chosen_students():
                student = get_student(context, Compiled(), label, data.num_classes, "labels")
                variables = pretrain(context, student, name, Path(scratch) / name / label, spec.seeds, sets)
                predict = jax.jit(feature_kernel(student.learner, ridge=1e-6, ridge_scale="mean_trace", bias=False).predict)
                outputs = spread(accuracy(student.learner.apply(v, images)) for v in variables)
                krr = spread(accuracy(predict(v, s.images, s.targets, images)[0]) for v, s in zip(variables, sets, strict=True))
                print(f"{name}, {label}: {outputs}; krr {krr}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "test")
