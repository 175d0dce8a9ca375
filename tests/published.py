"""Small files in the layouts in which datasets are published, written without the readers' code."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = 4
COUNTS = {"train": 48, "test": 16}


def draw(split, side, channels=3):
    """Grey images of one level each, which no resizing and no JPEG changes: all datasets are then the same once they are prepared."""
    count = COUNTS[split]
    order = np.random.RandomState(0).permutation(256).astype(np.uint8)
    levels = order[:count] if split == "train" else order[-count:]
    return np.broadcast_to(levels[:, None, None, None], (count, side, side, channels)), np.arange(count) % CLASSES


def jpeg(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG")
    return content.getvalue()


def text(*lines):
    return "".join(f"{line}\n" for line in lines).encode()


def write_tar(file, members):
    with tarfile.open(file, "w:gz" if file.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_idx(folder):
    for prefix, split in (("train", "train"), ("t10k", "test")):
        images, labels = draw(split, 28, 1)
        sizes = b"".join(size.to_bytes(4, "big") for size in images.shape[:3])
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + sizes + images.tobytes()))
        content = b"\0\0\x08\x01" + sizes[:4] + labels.astype(np.uint8).tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))


def cifar_records(split, coarse):
    images, labels = draw(split, 32)
    head = (lambda label: bytes([0, label])) if coarse else (lambda label: bytes([label]))
    return [head(label) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels.tolist(), strict=True)]


def write_cifar10(folder):
    train, root = cifar_records("train", False), "cifar-10-batches-bin"
    batches = {f"{root}/data_batch_{i + 1}.bin": b"".join(train[i::5]) for i in range(5)}
    names = {f"{root}/batches.meta.txt": text(*(f"class{i}" for i in range(10)), "")}
    write_tar(folder / "cifar-10-binary.tar.gz", {**names, **batches, f"{root}/test_batch.bin": b"".join(cifar_records("test", False))})


def write_cifar100(folder):
    root = "cifar-100-binary"
    names = {f"{root}/{kind}_label_names.txt": text(*(f"{kind}{i}" for i in range(n))) for kind, n in (("fine", 100), ("coarse", 20))}
    records = {f"{root}/{split}.bin": b"".join(cifar_records(split, True)) for split in COUNTS}
    write_tar(folder / "cifar-100-binary.tar.gz", {**names, **records})


def write_svhn(folder):
    for split in COUNTS:
        images, labels = draw(split, 32)
        y = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})


def write_stl10(folder):
    members = {"stl10_binary/class_names.txt": text(*(f"class{i}" for i in range(10)))}
    for split in COUNTS:
        images, labels = draw(split, 96)
        members[f"stl10_binary/{split}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        members[f"stl10_binary/{split}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
    members["stl10_binary/unlabeled_X.bin"] = draw("train", 96)[0][::-1].transpose(0, 3, 2, 1).tobytes()
    write_tar(folder / "stl10_binary.tar.gz", members)


def write_tiny_imagenet(folder):
    root, wnids = "tiny-imagenet-200", [f"n0000000{i}" for i in range(CLASSES)]
    members = {f"{root}/wnids.txt": text(*wnids), f"{root}/words.txt": text(*(f"{wnid}\tthing {wnid[-1]}, other" for wnid in wnids))}
    (train, train_labels), (test, test_labels) = (draw(split, 64) for split in COUNTS)
    for i, (image, label) in enumerate(zip(train, train_labels, strict=True)):
        members[f"{root}/train/{wnids[label]}/images/{wnids[label]}_{i}.JPEG"] = jpeg(image)
    for i, image in enumerate(test):
        members[f"{root}/val/images/val_{i}.JPEG"] = jpeg(image)
    members[f"{root}/val/val_annotations.txt"] = text(*(f"val_{i}.JPEG\t{wnids[label]}\t0\t0\t9\t9" for i, label in enumerate(test_labels)))
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_imagenet64(folder):
    def batch(images, labels):
        content = io.BytesIO()
        np.savez(content, data=images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels=labels + 1, mean=np.zeros(12288))
        return content.getvalue()

    images, labels = draw("train", 64)
    train = {f"train_data_batch_{i + 1}.npz": batch(images[i::10], labels[i::10]) for i in range(10)}
    parts = {"train_part1": list(train)[:5], "train_part2": list(train)[5:], "val": ["val_data.npz"]}
    train["val_data.npz"] = batch(*draw("test", 64))
    for part, names in parts.items():
        with zipfile.ZipFile(folder / f"Imagenet64_{part}_npz.zip", "w") as archive:
            for name in names:
                archive.writestr(name, train[name])


def write_cub200(folder):
    root, names = "CUB_200_2011", [f"{i + 1:03d}.Bird_{i}" for i in range(CLASSES)]
    rows = []
    for split, is_train in (("train", 1), ("test", 0)):
        images, labels = draw(split, 40)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            rows.append((f"{names[label]}/{split}_{i}.jpg", label, is_train, image[: 30 + i % 9]))
    lists = {
        "images": [f"{i} {name}" for i, (name, *_) in enumerate(rows, 1)],
        "image_class_labels": [f"{i} {row[1] + 1}" for i, row in enumerate(rows, 1)],
        "train_test_split": [f"{i} {row[2]}" for i, row in enumerate(rows, 1)],
        "classes": [f"{i} {name}" for i, name in enumerate(names, 1)],
    }
    members = {f"{root}/{name}.txt": text(*lines) for name, lines in lists.items()}
    write_tar(folder / "CUB_200_2011.tgz", {**members, **{f"{root}/images/{row[0]}": jpeg(row[3]) for row in rows}})


def write_dogs(folder):
    names, images, lists = [f"n0000000{i}-dog_{i}" for i in range(CLASSES)], {}, {}
    files = {"train": [], "test": [], "file": []}
    for split in COUNTS:
        for i, (image, label) in enumerate(zip(*draw(split, 36), strict=True)):
            name = f"{names[label]}/n0000000{label}_{split}{i}.jpg"
            images[f"Images/{name}"] = jpeg(image[:, : 30 + i % 7])
            files[split].append((name, label + 1))
            files["file"].append((name, label + 1))
    for name, rows in files.items():
        content, cells = io.BytesIO(), np.empty((len(rows), 1), object)
        cells[:, 0] = [row[0] for row in rows]
        labels = np.array([[row[1]] for row in rows], np.uint8)
        savemat(content, {"file_list": cells, "annotation_list": cells, "labels": labels})
        lists[f"{name}_list.mat"] = content.getvalue()
    write_tar(folder / "images.tar", images)
    write_tar(folder / "lists.tar", lists)


WRITERS = {
    "mnist": write_idx,
    "fashion_mnist": write_idx,
    "kmnist": write_idx,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "stl10": write_stl10,
    "tiny_imagenet": write_tiny_imagenet,
    "imagenet64": write_imagenet64,
    "cub200": write_cub200,
    "dogs": write_dogs,
}
"""By name, a function that writes a dataset's published files into a folder."""
