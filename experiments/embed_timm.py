"""Features of a dataset by a model of timm, as config.teacher.features takes them.

    python experiments/embed_timm.py --source folder:photos --size 32 --model vit_small_patch14_dinov2.lvd142m --out features.npz

Rows are in the order of the prepared dataset; every split that it has is encoded, the distilled one also under views. Images are turned as
they are stored, resized (bicubic) to what the model takes, and normalised as it was trained. Needs `pip install ssdd-jax[timm]`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from ssdd_jax import VIEWS, Options, load_dataset
from ssdd_jax.core.views import ROTATIONS
from ssdd_jax.errors import InputError


def load_model(name, pretrained=True, img_size=None):
    """Return the model without its classifier, and (side, mean, std) of the images that it takes.

    Raises:
        InputError: timm is not installed, or has no such model, or its weights cannot be had.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed; pip install ssdd-jax[timm]") from error
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **({"img_size": img_size} if img_size else {}))
    except Exception as error:  # timm's, the Hub's and the network's own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"--model {name} cannot be made ({reason}); choose one of timm.list_models(pretrained=True), download its weights where there "
            "is a network, or take --random_weights"
        ) from error
    config = timm.data.resolve_model_data_config(model)
    return model.eval(), (img_size or config["input_size"][-1], config["mean"], config["std"])


def encode(model, about, images, view, batch_size=64):
    """Return the features float32 "n d" of uint8 images "n H W C" under a view."""
    import torch

    side, mean, std = about
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    found = []
    for start in range(0, len(images), batch_size):
        pixels = np.array(VIEWS[view](np.asarray(images[start : start + batch_size]) / np.float32(255)))
        if pixels.shape[-1] not in (1, 3):
            raise InputError(f"the images have {pixels.shape[-1]} channels, expected 1 or 3; give --channels=3")
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            batch = torch.nn.functional.interpolate(batch, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
            found.append(model((batch - mean) / std).float().cpu().numpy())
        print(f"\r{view}: {start + len(pixels)}/{len(images)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.concatenate(found)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="as config.data.source")
    parser.add_argument("--data_dir", default="", help="as config.data.data_dir")
    parser.add_argument("--size", type=int, default=0, help="as config.data.size")
    parser.add_argument("--fit", default="crop", help="as config.data.fit")
    parser.add_argument("--channels", type=int, default=0, help="as config.data.channels")
    parser.add_argument("--split", default="train", help="as config.data.split")
    parser.add_argument("--views", default=",".join(ROTATIONS), help="views of that split, separated by commas")
    parser.add_argument("--model", required=True, help="a model of timm")
    parser.add_argument("--img_size", type=int, default=0, help="side that the model is made for; 0 takes its own")
    parser.add_argument("--random_weights", action="store_true", help="do not download weights: an untrained model, for trying this out")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--out", required=True, help="the .npz to write")
    args = parser.parse_args(argv)
    views = args.views.split(",")
    try:
        if unknown := set(views) - set(VIEWS):
            raise InputError(f"--views has {', '.join(sorted(unknown))}, expected some of {', '.join(VIEWS)}")
        dataset = load_dataset(args.source, args.data_dir, Options(size=args.size, fit=args.fit, channels=args.channels))
        if args.split not in dataset.splits:
            raise InputError(f"--split is {args.split!r}, {dataset.name} has {', '.join(dataset.splits)}; choose one of them")
        model, about = load_model(args.model, not args.random_weights, args.img_size)
        others = {name: (name, "identity") for name in dataset.splits if name != args.split}
        wanted = {**{view: (args.split, view) for view in views}, **others}
        arrays = {name: encode(model, about, dataset.splits[split].images, view, args.batch_size) for name, (split, view) in wanted.items()}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    out = Path(args.out)
    # A file under its final name is complete.
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(out)
    print(f"{out}: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
