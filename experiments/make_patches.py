"""Cut patches of photographs into an .npz: python experiments/make_patches.py FILE.npz [--side 16] [--photographs FOLDER ...].

Without folders the photographs are the ten in colour that scikit-image and scikit-learn carry in their wheels (pip install scikit-image);
with folders all JPEGs below them, such as those of Debian's packages mate-backgrounds and lomiri-wallpapers-16.04, shrunk to a longer side
of 1,024. A patch's class is its photograph. The middle of each is divided into blocks of 4 x 4 patches, and a fifth of the blocks is for
the test, so that no training patch comes from beside a test patch but at a block's border.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
ACROSS, TEST = 4, 0.2
LARGEST, LONGER_SIDE = 512, 1024
"""Of the wheels' photographs the middle is taken; larger ones are shrunk."""


def photographs(folders: list[Path]) -> dict[str, np.ndarray]:
    """Return the photographs as RGB, by name."""
    if not folders:
        middle = lambda side: slice((side - min(side, LARGEST)) // 2, (side + min(side, LARGEST)) // 2)
        images = {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in in_wheels()}
        return {name: image[middle(image.shape[0]), middle(image.shape[1])] for name, image in images.items()}
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    shrunk = lambda file: np.asarray(ImageOps.contain(Image.open(file).convert("RGB"), (LONGER_SIDE, LONGER_SIDE)))
    return {str(file.with_suffix("")): shrunk(file) for file in files}


def in_wheels() -> list[Path]:
    package = lambda name: Path(find_spec(name).origin).parent
    folders = package("skimage") / "data", package("sklearn") / "datasets" / "images"
    return [folder / name for folder, names in zip(folders, (FROM_SKIMAGE, FROM_SKLEARN), strict=True) for name in names]


def cut(image: np.ndarray, side: int) -> np.ndarray:
    """Return the patches of every block, "blocks patches side side 3"."""
    block = ACROSS * side
    height, width = (length // block * block for length in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    parts = image[top : top + height, left : left + width].reshape(height // block, ACROSS, side, width // block, ACROSS, side, 3)
    return parts.transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, ACROSS**2, side, side, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--photographs", type=Path, nargs="+", default=[], metavar="FOLDER")
    args = parser.parse_args()
    random, side, images = np.random.RandomState(0), args.side, photographs(args.photographs)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("x_train", "y_train", "x_test", "y_test")}
    for label, image in enumerate(images.values()):
        blocks = cut(image, side)
        order = random.permutation(len(blocks))
        first = round(TEST * len(blocks))
        for split, rows in (("test", order[:first]), ("train", order[first:])):
            patches = blocks[np.sort(rows)].reshape(-1, side, side, 3)
            found[f"x_{split}"].append(patches)
            found[f"y_{split}"].append(np.full(len(patches), label))
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    np.savez(args.file, class_names=np.array([Path(name).name for name in images]), **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
