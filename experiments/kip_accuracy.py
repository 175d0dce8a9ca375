"""Print the accuracy of kernel regression on the sets of KIP that a run has made, on its test or validation split.

python experiments/kip_accuracy.py WORKDIR [test|validation]
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ssdd_jax import load_distilled
from ssdd_jax.methods.kip import krr_accuracy
from ssdd_jax.settings.methods import KipSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.stages.dataset import load_data


def main(workdir: Path, split: str) -> None:
    spec = to_spec(json.loads((workdir / "spec.json").read_text())["settings"])
    data = load_data(spec.data, split)
    images, labels = data.normalize(jnp.asarray(data.eval_images)), jnp.asarray(data.eval_labels)
    for name, method in spec.methods.items():
        sets = [workdir / "distilled" / name / f"seed_{seed}" for seed in spec.seeds]
        if isinstance(method, KipSpec) and all(folder.is_dir() for folder in sets):
            scores = 100 * np.array([krr_accuracy(method, load_distilled(folder), images, labels) for folder in sets])
            spread = f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
            print(f"{name}: {scores.mean():.1f}{spread} ({', '.join(f'{score:.1f}' for score in scores)})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "test")
