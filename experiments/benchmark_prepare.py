"""Images per second: preparing a folder of JPEGs, compared with a plain loop over them and with the floor of this machine.

python experiments/benchmark_prepare.py [--images 60000] [--repetitions 3]

Seeded smooth JPEGs of 64 pixels in ten class folders, five sixths of them train and the others test, lie in a temporary folder.
The plain loop opens, decodes and stores them in one process and nothing else. Preparing uses all cores, and also hashes
every file, every image and the stored arrays, counts pixel values, and looks for test images that are train images too; the cost of
that is measured separately. The floor is reading and writing the bytes at the speed of plain blocks, and decoding on all cores.
Files are read from the system's page cache, where writing has left them.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ssdd_jax.data import Options, open_prepared, open_source, prepare
from ssdd_jax.data.dataset import array_digest, count_pixels
from ssdd_jax.data.workers import num_workers

SIDE = 64
BLOCK = os.urandom(2**22)


def write_images(root: Path, count: int) -> None:
    random = np.random.RandomState(0)
    for i in range(count):
        file = root / ("test" if i % 6 == 5 else "train") / f"class_{i % 10}" / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.randint(0, 256, (6, 6, 3)).astype(np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)


def prepare_all(root: Path, folder: Path) -> Path:
    return prepare(open_source(f"folder:{root}"), Options(SIDE), folder)


def plain_loop(root: Path, folder: Path) -> None:
    for split in ("train", "test"):
        files = sorted((root / split).rglob("*.jpg"))
        images = np.empty((len(files), SIDE, SIDE, 3), np.uint8)
        for i, file in enumerate(files):
            with Image.open(file) as opened:
                image = opened.convert("RGB")
            images[i] = np.asarray(image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        np.save(folder / f"{split}.npy", images)


def seconds(function: Callable, *args) -> float:
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def write_blocks(file: Path, size: int) -> None:
    with file.open("wb", buffering=0) as stream:
        for start in range(0, size, len(BLOCK)):
            stream.write(BLOCK[: size - start])


def read_blocks(file: Path) -> None:
    with file.open("rb", buffering=0) as stream:
        while stream.read(len(BLOCK)):
            pass


def floor(contents: list[bytes], images: int, cores: int, folder: Path) -> dict[str, float]:
    """Return the seconds that cannot be saved: bytes in and out, and decoding."""

    def decode() -> None:
        for content in contents[:3000]:
            with Image.open(io.BytesIO(content)) as image:
                image.load()

    num_read, num_written = sum(map(len, contents)), images * SIDE * SIDE * 3
    write_blocks(folder / "read", num_read)
    parts = {
        "read": seconds(read_blocks, folder / "read"),
        "write": seconds(write_blocks, folder / "written", num_written),
        "decode_on_all_cores": seconds(decode) / min(len(contents), 3000) * len(contents) / cores,
    }
    return {**parts, "total": sum(parts.values()), "megabytes_read": num_read / 1e6, "megabytes_written": num_written / 1e6}


def extras(contents: list[bytes], prepared: Path) -> dict[str, float]:
    """Return the seconds of one core that preparing spends on what the plain loop does not do."""
    images = {name: np.array(split.images) for name, split in open_prepared(prepared).splits.items()}
    rows: dict[str, np.ndarray] = {}

    def hash_images() -> None:
        for name, array in images.items():
            rows[name] = np.array([hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in array], "S16")

    return {
        "hash_files": seconds(lambda: [hashlib.sha256(content).hexdigest() for content in contents]),
        "hash_images": seconds(hash_images),
        "find_shared_images": seconds(lambda: np.isin(rows["test"], rows["train"])),
        "digest_arrays": seconds(lambda: [array_digest(array) for array in images.values()]),
        "count_pixels": seconds(lambda: [count_pixels(array[i : i + 256]) for array in images.values() for i in range(0, len(array), 256)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    cores = num_workers()
    with tempfile.TemporaryDirectory() as temporary:
        root, work = Path(temporary) / "images", Path(temporary) / "work"
        write_images(root, args.images)
        contents = [file.read_bytes() for file in sorted(root.rglob("*.jpg"))]
        times: dict[str, list[float]] = {"prepare": [], "plain": []}
        prepared = None
        for repetition in range(args.repetitions):
            for name in ("prepare", "plain") if repetition % 2 == 0 else ("plain", "prepare"):
                folder = work / f"{name}_{repetition}"
                folder.mkdir(parents=True)
                times[name].append(seconds(prepare_all if name == "prepare" else plain_loop, root, folder))
            (prepared,) = (work / f"prepare_{repetition}").iterdir()
            plain = np.load(work / f"plain_{repetition}" / "train.npy", mmap_mode="r")
            np.testing.assert_array_equal(open_prepared(prepared).splits["train"].images[:100], plain[:100])
        again = seconds(prepare_all, root, prepared.parent)
        ratios = sorted(plain / own for own, plain in zip(times["prepare"], times["plain"], strict=True))
        lowest = floor(contents, args.images, cores, work)
        costs = extras(contents, prepared)
    rates = {name: args.images / statistics.median(values) for name, values in times.items()}
    result = {
        "images": args.images,
        "cores": cores,
        "seconds": times,
        "images_per_second": rates,
        "ratio": {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
        "floor_seconds": lowest,
        "floor_images_per_second": args.images / lowest["total"],
        "extra_seconds_of_one_core": costs,
        "seconds_when_prepared_already": again,
    }
    print(json.dumps(result, indent=1))
    print(
        f"{args.images} JPEGs of {SIDE} px on {cores} cores: prepared {rates['prepare']:,.0f} images/s, plain loop {rates['plain']:,.0f}, "
        f"ratio {result['ratio']['median']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), floor {result['floor_images_per_second']:,.0f}; "
        f"hashes, counts and the search for shared images take {sum(costs.values()):.2f} s of one core, opening it again {again:.2f} s"
    )


if __name__ == "__main__":
    main()
