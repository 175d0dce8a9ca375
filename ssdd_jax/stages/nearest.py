"""The real images that the teacher represents most like a set's, for the report."""

import jax.numpy as jnp
import numpy as np

from ssdd_jax.data import select_rows
from ssdd_jax.io.pairs import Pairs
from ssdd_jax.report.gallery import images_shown
from ssdd_jax.report.nearest import COUNT, Nearest, nearest_rows, read_nearest, write_nearest
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.sets import Sets


def find_nearest(context: Context, sets: Sets) -> None:
    """Write the real images nearest to those of the first seed of every set, unless the file has them already.

    What is compared is the representation of the training images with a set's own targets or, where these are labels, with the
    teacher's representation of its images. Nothing is done in a run that has not represented its training images.
    """
    file = context.checkpoints / f"representations-{context.teacher_digest}" / "train-identity.npy"
    firsts = {name: next(iter(by_seed.values())) for name, by_seed in sets.items()}
    digests = {name: str(stored.manifest.get("sha256", "")) for name, stored in firsts.items()}
    before = read_nearest(context.workdir)
    found = {name: before[name] for name in firsts if name in before and before[name].digest == digests[name]}
    missing = [name for name in firsts if name not in found]
    if not file.is_file() or not missing:
        return
    reprs = context.reprs("train")
    for name in missing:
        pairs = firsts[name].pairs(context.data)
        num_views = int(firsts[name].manifest.get("num_views") or 1)
        count = images_shown(len(pairs.images) // num_views, context.data.image_shape, num_views)
        rows, distances = nearest_rows(_represented(context, pairs, count), reprs, min(COUNT, len(reprs)))
        unique, places = np.unique(rows, return_inverse=True)
        images = select_rows(context.data.train_images, unique)
        pixels = np.asarray(images[: len(unique)])[places.reshape(rows.shape)]
        found[name] = Nearest(pixels, rows, distances.astype(np.float32), digests[name])
    write_nearest(context.workdir, {name: found[name] for name in firsts})


def _represented(context: Context, pairs: Pairs, count: int) -> np.ndarray:
    """Return the representations "m d" of a set's first images under its first view."""
    if pairs.target_kind == "representation":
        return np.asarray(pairs.targets[:count])
    return context.represent(jnp.asarray(pairs.images[:count]))
