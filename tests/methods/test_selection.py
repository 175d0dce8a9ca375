import numpy as np
import pytest

from ssdd_jax.methods.selection import herd, nearest_to_centres, select_images


def clusters(seed=0, per_cluster=40):
    draw = np.random.RandomState(seed)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return (centres[:, None] + draw.normal(size=(3, per_cluster, 2))).reshape(-1, 2).astype(np.float32)


def test_kmeans_takes_the_row_nearest_to_the_middle_of_every_cluster():
    rows = clusters()
    chosen = nearest_to_centres(rows, 3, seed=0)
    groups = rows.reshape(3, -1, 2)
    nearest = [40 * i + np.argmin(np.sum((group - group.mean(0)) ** 2, 1)) for i, group in enumerate(groups)]
    assert sorted(chosen) == sorted(nearest)


def test_kmeans_takes_no_row_twice_and_is_a_function_of_its_seed():
    rows = np.repeat(clusters(per_cluster=2), 2, 0)
    assert len(set(nearest_to_centres(rows, 10, seed=1))) == 10
    np.testing.assert_array_equal(nearest_to_centres(clusters(), 20, seed=3), nearest_to_centres(clusters(), 20, seed=3))


def test_herding_is_the_greedy_search_for_the_mean():
    rows = clusters(per_cluster=5)
    chosen = []
    for _ in range(6):
        left = [i for i in range(len(rows)) if i not in chosen]
        means = [np.mean([*rows[chosen], rows[i]], 0) for i in left]
        chosen.append(left[int(np.argmin([np.sum((mean - rows.mean(0)) ** 2) for mean in means]))])
    np.testing.assert_array_equal(herd(rows, 6), chosen)
    assert sorted(herd(rows, 15)) == list(range(15))


def test_herding_comes_nearer_to_the_mean_than_chance():
    rows = clusters()
    gap = lambda chosen: np.linalg.norm(rows[chosen].mean(0) - rows.mean(0))
    by_chance = [gap(np.random.RandomState(seed).permutation(len(rows))[:6]) for seed in range(50)]
    assert gap(herd(rows, 6)) < np.quantile(by_chance, 0.1)


@pytest.mark.parametrize("selection", ["random", "kmeans", "herding"])
def test_a_selection_is_of_distinct_rows_and_random_ones_ask_for_no_representations(selection):
    def reprs():
        assert selection != "random"
        return clusters()

    chosen = select_images(selection, 5, 7, 120, reprs)
    assert len(set(chosen.tolist())) == 7
    assert set(chosen.tolist()) <= set(range(120))
