"""Cut 16 x 16 patches of photographs into an .npz: python experiments/make_patches.py FILE.npz (needs pip install scikit-image).

The photographs are the ten in colour that scikit-image and scikit-learn carry in their wheels; a patch's class is its photograph. The
middle of each is divided into blocks of 64 x 64, and a fifth of the blocks is for the test.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

FROM_SKIMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
FROM_SKLEARN = ["china.jpg", "flower.jpg"]
SIDE, BLOCK, LARGEST, TEST = 16, 64, 512, 0.2


def photographs() -> list[Path]:
    package = lambda name: Path(find_spec(name).origin).parent
    folders = package("skimage") / "data", package("sklearn") / "datasets" / "images"
    return [folder / name for folder, names in zip(folders, (FROM_SKIMAGE, FROM_SKLEARN), strict=True) for name in names]


def cut(image: np.ndarray) -> np.ndarray:
    """Return the patches of every block, "blocks patches 16 16 3"."""
    height, width = (min(side, LARGEST) // BLOCK * BLOCK for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    image, across = image[top : top + height, left : left + width], BLOCK // SIDE
    parts = image.reshape(height // BLOCK, across, SIDE, width // BLOCK, across, SIDE, 3)
    return parts.transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, across**2, SIDE, SIDE, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    args = parser.parse_args()
    random, files = np.random.RandomState(0), photographs()
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("x_train", "y_train", "x_test", "y_test")}
    for label, file in enumerate(files):
        blocks = cut(np.asarray(Image.open(file).convert("RGB")))
        order = random.permutation(len(blocks))
        first = round(TEST * len(blocks))
        for split, rows in (("test", order[:first]), ("train", order[first:])):
            patches = blocks[np.sort(rows)].reshape(-1, SIDE, SIDE, 3)
            found[f"x_{split}"].append(patches)
            found[f"y_{split}"].append(np.full(len(patches), label))
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    np.savez(args.file, class_names=np.array([file.stem for file in files]), **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
