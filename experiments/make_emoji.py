"""Emoji-99: a small, real RGB dataset for places where CIFAR cannot be downloaded.

Takes the npm package emoji-datasource (25 MB), cuts its four vendors' sheets into 32x32 images on white,
labels each with its Unicode subcategory (99 classes), and writes OUT.npz:

    x_train (11214, 32, 32, 3) uint8   Apple, Facebook and Google drawings
    x_test  (3786, 32, 32, 3) uint8    Twitter's drawings of the same glyphs, never trained on
    y_train, y_test  int64 in [0, 99);  class_names

The drawings belong to their vendors: use them to test and measure, but do not commit them anywhere.

Usage: python experiments/make_emoji.py OUT.npz        needs npm, numpy, pillow
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

VENDORS = ("apple", "facebook", "google", "twitter")
TEST_VENDOR = "twitter"
CELL, SIZE = 34, 32  # one pixel of padding around each drawing


def main(out: str) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["npm", "pack", "--silent", "emoji-datasource@16.0.0"], cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(tmp).glob("*.tgz"))) as tar:
            read = lambda name: tar.extractfile(f"package/{name}").read()
            glyphs = json.loads(read("emoji.json"))
            sheets = {v: np.asarray(Image.open(io.BytesIO(read(f"img/{v}/sheets/32.png"))).convert("RGBA"), np.float32) for v in VENDORS}

    names = sorted({g["subcategory"] for g in glyphs})
    images, labels = {True: [], False: []}, {True: [], False: []}
    for vendor in VENDORS:
        test = vendor == TEST_VENDOR
        for glyph in glyphs:
            for variant in (glyph, *glyph.get("skin_variations", {}).values()):
                if not variant.get(f"has_img_{vendor}"):
                    continue
                y, x = variant["sheet_y"] * CELL + 1, variant["sheet_x"] * CELL + 1
                tile = sheets[vendor][y : y + SIZE, x : x + SIZE]
                alpha = tile[..., 3:] / 255
                images[test].append((tile[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))
                labels[test].append(names.index(glyph["subcategory"]))

    np.savez_compressed(
        out,
        x_train=np.stack(images[False]),
        y_train=np.array(labels[False]),
        x_test=np.stack(images[True]),
        y_test=np.array(labels[True]),
        class_names=np.array(names),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="OUT.npz")
    main(parser.parse_args().file)
