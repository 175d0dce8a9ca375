"""Write the images of a run, and its teacher's representations of the test images, for train_torch.py.

python experiments/torch_data.py WORKDIR DATA.npz
"""

import json
import sys
from pathlib import Path

import numpy as np

from ssdd_jax.settings.parse import to_spec
from ssdd_jax.stages.dataset import load_data


def main(workdir: Path, file: Path) -> None:
    spec = to_spec(json.loads((workdir / "spec.json").read_text())["settings"])
    data = load_data(spec.data, "test")
    (cached,) = workdir.glob("checkpoints/representations-*/test-identity.npy")
    arrays = {"x_train": data.train_images, "y_train": data.train_labels, "x_test": data.eval_images, "y_test": data.eval_labels}
    np.savez(file, reprs_test=np.load(cached), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
