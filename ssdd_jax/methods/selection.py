"""Which real images a set starts from."""

import warnings
from collections.abc import Callable

import jax
import numpy as np

from ssdd_jax.errors import InputError
from ssdd_jax.rng import Stream, step_key

# With more distances than this in one pass over the rows, centres are moved by samples of the rows.
MAX_DISTANCES = 10**7
SAMPLE = 4096
# Images that an expert reads at a time: it need not see all of a class.
READ_AT_ONCE = 256


def select_images(selection: str, seed: int, count: int, num_rows: int, reprs: Callable[[], np.ndarray]) -> np.ndarray:
    """Return `count` distinct rows of `num_rows` training images.

    Args:
        selection: 'random', 'kmeans' (`nearest_to_centres`) or 'herding' (`herd`).
        seed: seed of the random choice and of the first centres; herding needs none.
        count: number of rows to choose.
        num_rows: number of rows to choose from.
        reprs: () -> the teacher's representations "n d" of the training images; called only if they are used.
    """
    if selection == "kmeans":
        return nearest_to_centres(np.asarray(reprs()), count, seed)
    if selection == "herding":
        return herd(np.asarray(reprs()), count)
    return np.asarray(jax.random.permutation(step_key(seed, Stream.DISTILLED_INIT), num_rows)[:count])


def balanced_rows(seed: int, count: int, labels: np.ndarray, draw: int = 0) -> np.ndarray:
    """Return `count` distinct random rows, of every class as many as of any other, or all that there are.

    `labels` are integers "n"; draws with different numbers are independent.
    """
    order = np.asarray(jax.random.permutation(step_key(seed, Stream.DISTILLED_INIT, draw), len(labels)))
    # A row's place among those of its class: first all firsts, then all seconds, and so on.
    place = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        place[members] = np.arange(len(members))
    return order[np.argsort(place, kind="stable")[:count]]


def balanced_images(where: str, seed: int, count: int, labels: np.ndarray, num_classes: int, draw: int = 0) -> np.ndarray:
    """Return `count` random distinct rows, equally many of each class, class after class.

    Args:
        where: config.methods.NAME, for messages.
        seed: seed of the choice.
        count: number of rows to choose, a multiple of `num_classes`.
        labels: labels "n" of the training images.
        num_classes: number of classes.
        draw: draws with different numbers are independent.

    Raises:
        InputError: a class has too few training images.
    """
    each, available = count // num_classes, np.bincount(labels, minlength=num_classes)
    if available.min() < each:
        raise InputError(
            f"{where} has {count} images, {each} of each class, but class {available.argmin()} has {available.min()} training images; "
            f"lower {where}.images to at most {available.min() * num_classes}, or leave that class out of the data"
        )
    rows = balanced_rows(seed, count, labels, draw)
    return rows[np.argsort(labels[rows], kind="stable")]


def correct_images(
    where: str,
    seed: int,
    count: int,
    labels: np.ndarray,
    num_classes: int,
    right: Callable[[int, np.ndarray], np.ndarray],
    num_experts: int,
) -> np.ndarray:
    """Return random distinct rows that an expert classifies correctly, equally many of each class, class after class.

    The rows of a class are of one expert, the first that is right about enough of them.

    Args:
        where: config.methods.NAME, for messages.
        seed: seed of the choice.
        count: number of rows to choose, a multiple of `num_classes`.
        labels: labels "n" of the training images.
        num_classes: number of classes.
        right: (expert, rows "k") -> whether the expert is right about each, booleans "k".
        num_experts: number of experts.

    Raises:
        InputError: no expert is right about enough images of a class.
    """
    each, order = count // num_classes, np.asarray(jax.random.permutation(step_key(seed, Stream.CORRECT_IMAGES), len(labels)))

    def of_class(label: int) -> np.ndarray:
        members, most = order[labels[order] == label], 0
        for expert in range(num_experts):
            found = np.zeros(0, order.dtype)
            for start in range(0, len(members), READ_AT_ONCE):
                part = members[start : start + READ_AT_ONCE]
                found = np.concatenate([found, part[right(expert, part)]])
                if len(found) >= each:
                    return found[:each]
            most = max(most, len(found))
        raise InputError(
            f"{where} starts from {each} images of each class that an expert classifies correctly, but of class {label} there are at most "
            f"{most}; train experts longer ({where}.experts.epochs), lower {where}.images, or set {where}.init to 'real'"
        )

    return np.concatenate([of_class(label) for label in range(num_classes)])


def centres_of(reprs: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the centres "count d" of k-means."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    settings = dict(n_clusters=count, n_init=1, random_state=seed)
    large = len(reprs) * count > MAX_DISTANCES
    means = MiniBatchKMeans(batch_size=SAMPLE, **settings) if large else KMeans(**settings)
    # One thread, since several would sum in any order. Fewer distinct rows than centres are not an error.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(means.fit(reprs).cluster_centers_)


def nearest_to_centres(reprs: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the rows nearest to the centres of k-means with k = `count`, each row once, even if fewer are distinct."""
    from threadpoolctl import threadpool_limits

    centres = centres_of(reprs, count, seed)
    with threadpool_limits(1):
        norms, taken, chosen = np.sum(reprs**2, 1), np.zeros(len(reprs), np.float32), []
        at_once = max(1, MAX_DISTANCES // len(reprs))
        for first in range(0, count, at_once):
            # Squares of the distances, without the centres' own squares.
            for distances in norms - 2 * centres[first : first + at_once] @ reprs.T:
                chosen.append(int(np.argmin(distances + taken)))
                taken[chosen[-1]] = np.inf
    return np.array(chosen)


def herd(reprs: np.ndarray, count: int) -> np.ndarray:
    """Return rows, each chosen so that the mean of all so far comes nearest to the mean of all rows (Welling, 2009)."""
    reprs = reprs.astype(np.float64)
    mean, norms = reprs.mean(0), np.sum(reprs**2, 1)
    total, chosen = np.zeros_like(mean), []
    for number in range(1, count + 1):
        # |number mean - total - row|^2, without the term that all rows share.
        distances = norms - 2 * reprs @ (number * mean - total)
        distances[chosen] = np.inf
        chosen.append(int(np.argmin(distances)))
        total += reprs[chosen[-1]]
    return np.array(chosen)
