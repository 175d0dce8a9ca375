"""Train a PyTorch network on an exported set (format pt) by its protocol, and probe what it learned; needs only torch and numpy.

python experiments/train_torch.py EXPORT_FOLDER DATA.npz --updates 300 --probe-steps 2000 --widths 16,32,64 --seeds 0,1,2

DATA.npz, which torch_data.py writes, holds x_train, x_test uint8 "n H W C", y_train, y_test. If it has `reprs_test` "n d", the teacher's
representations of x_test in the targets' units, (the teacher's own - centre) / scale, the student's error in them is printed too.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def batches(num_rows, size, steps):
    per_epoch = -(-num_rows // size)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(num_rows).split(size)
        yield order[step % per_epoch]


def convnet(image_shape, widths, num_outputs):
    channels, height, width = image_shape
    layers = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.AvgPool2d(2)]
        height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten()), nn.Linear(widths[-1] * height * width, num_outputs)


def fit(model, x, y, loss_fn, settings, steps, final_rate):
    rate, momentum, decay = (settings[key] for key in ("learning_rate", "momentum", "weight_decay"))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, final_rate)
    for rows in batches(len(x), settings["batch_size"], steps):
        optimizer.zero_grad()
        loss_fn(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def apply(model, pixels, mean, std):
    to_input = lambda block: ((block.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return torch.cat([model(to_input(block)) for block in torch.from_numpy(pixels).split(1000)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--updates", type=int, help="in place of the protocol's epochs")
    parser.add_argument("--probe-steps", type=int, help="in place of the protocol's")
    parser.add_argument("--widths", default="128,256,512")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()

    manifest, data = json.loads((args.folder / "manifest.json").read_text()), np.load(args.data)
    x, y = (torch.load(args.folder / name, weights_only=True).detach() for name in ("x_syn.pt", "y_syn.pt"))
    digest = hashlib.sha256(np.ascontiguousarray(x[0].permute(1, 2, 0), "<f4").tobytes()).hexdigest()
    if digest != manifest["checksum"]["sha256"]:
        raise SystemExit("the first image does not match the manifest: export the set again")
    mean, std = (torch.tensor(manifest["normalization"][key]) for key in ("mean", "std"))
    train, probe = manifest["published_protocol"]["pretraining"], manifest["published_protocol"]["linear_probe"]
    updates = args.updates or train["epochs"] * -(-len(x) // train["batch_size"])
    probe_steps, results = args.probe_steps or probe["steps"], []
    y_train, y_test = (torch.from_numpy(data[key]).long() for key in ("y_train", "y_test"))
    for seed in map(int, args.seeds.split(",")):
        torch.manual_seed(seed)
        backbone, head = convnet(x.shape[1:], [int(width) for width in args.widths.split(",")], y.shape[1])
        student = nn.Sequential(backbone, head).train()
        fit(student, x, y, functional.mse_loss, train, updates, train["learning_rate"])
        student.eval()
        features, held_out = (apply(backbone, data[key], mean, std) for key in ("x_train", "x_test"))
        linear = nn.Linear(features.shape[1], int(y_train.max()) + 1)
        fit(linear, features, y_train, functional.cross_entropy, probe, probe_steps, 0.0)
        with torch.no_grad():
            row = {"probe_accuracy": (linear(held_out).argmax(1) == y_test).float().mean().item()}
            if "reprs_test" in data:
                reprs = torch.from_numpy(data["reprs_test"])
                row["repr_error"] = (((head(held_out) - reprs) ** 2).mean() / ((reprs - reprs.mean(0)) ** 2).mean()).item()
        results.append(row)
        print(f"seed {seed}: {', '.join(f'{key} {value:.4f}' for key, value in row.items())}", flush=True)
    for key in results[0]:
        values = np.array([row[key] for row in results])
        print(f"{key}: {values.mean():.4f}" + (f" +- {values.std(ddof=1):.4f} ({len(values)} seeds)" if len(values) > 1 else ""))


if __name__ == "__main__":
    main()
