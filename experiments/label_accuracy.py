"""Print how many images students of a run's label sets classify correctly, on its test or validation split.

python experiments/label_accuracy.py WORKDIR [test|validation] [students per set]

A student is pretrained as the run's settings say; its class is the largest of its outputs.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.stages.cells import Cell, Scope, student_rate
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.sets import own_sets
from ssdd_jax.stages.student import Compiled, encode, get_student, pretrain


def main(workdir: Path, split: str, students: int) -> None:
    spec = to_spec(json.loads((workdir / "spec.json").read_text())["settings"])
    data = load_data(spec.data, split)
    context, compiled = Context(spec, data, workdir, Metrics(workdir / "metrics.jsonl"), Display(quiet=True)), Compiled()
    sets = own_sets(context)
    for label in spec.students():
        for name, of_seeds in sets.items():
            scores = []
            for seed, stored in of_seeds.items():
                if stored.target_kind == "representation":
                    continue
                student = get_student(context, compiled, label, data.num_classes, stored.target_kind)
                rate = student_rate(Scope(context, sets, ()), Cell(name, label, data.name, seed))
                pairs = stored.pairs(data.image_shape)
                for number in range(students):
                    # A seed of its own for every student of a set.
                    with tempfile.TemporaryDirectory() as folder:
                        args = (name, Path(folder), [1000 * seed + number], [pairs], [rate])
                        (variables,) = pretrain(context, student, *args)
                    outputs = encode(student, variables, data).eval_reprs
                    scores.append(100 * float(np.mean(outputs.argmax(1) == data.eval_labels)))
            if scores:
                spread = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
                print(f"{name}, {label}: {np.mean(scores):.1f}{spread} ({', '.join(f'{score:.1f}' for score in scores)})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "test", int(sys.argv[3]) if len(sys.argv) > 3 else 3)
