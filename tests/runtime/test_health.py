import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.runtime.health import NumericalError, explain, first_bad, not_finite
from ssdd_jax.runtime.loop import Loop

IMAGES, TARGETS = jnp.arange(80.0).reshape(20, 4), jnp.arange(40.0).reshape(20, 2)


def draw(step, seed):
    return (jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), (3,), 0, 20),) * 2


def breaking(quantity, at=12, seed=5):
    """A step whose quantity is not finite from some step on, for one seed."""

    def step(state, number, batch, own_seed):
        bad = jnp.where((number >= at) & (own_seed == seed), jnp.inf, 0.0)
        pick = lambda name: bad if quantity == name else 0.0
        state = {"weights": state["weights"] + batch[0].sum() + pick("weights"), "count": state["count"] + 1}
        return state, {"loss": batch[1].sum() + pick("loss"), "grad_norm": 1.0 + pick("grad_norm")}

    return step


def run(step, folder, steps_per_dispatch, tables=(IMAGES, TARGETS), **settings):
    state = {"weights": jnp.zeros((2, 3)), "count": jnp.zeros((2,), jnp.int32)}
    loop = Loop(step, (0,), steps_per_dispatch, draw, causes={"loss": "the ridge; raise it", "weights": "the rate; lower it"})
    with Checkpoints(folder / "checkpoints", every=5) as checkpoints:
        return loop.run(
            state,
            40,
            (jnp.asarray([3, 5]),),
            display=Display(),
            name="distill/toy",
            tables=tables,
            metrics=Metrics(folder / "metrics.jsonl"),
            log_every=10,
            checkpoints=checkpoints,
            **settings,
        )


@pytest.mark.parametrize("steps_per_dispatch", [1, 7])
@pytest.mark.parametrize(
    ("quantity", "cause"), [("loss", "the ridge; raise it"), ("weights", "the rate"), ("grad_norm", "the learning rate")]
)
def test_the_step_the_quantity_the_cause_and_the_batch_are_told(tmp_path, quantity, cause, steps_per_dispatch):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NumericalError) as caught:
        run(breaking(quantity), tmp_path, steps_per_dispatch)
    message = str(caught.value)
    assert message.startswith(f"distill/toy: {quantity} is not finite at step 13; likely cause: {cause}")
    assert "the last checkpoint is of step 10, where all was finite" in message
    file = tmp_path / "bad_batch-distill-toy.npz"
    assert message.endswith(f"the batch is in {file}")
    with np.load(file, allow_pickle=False) as saved:
        (rows, _) = draw(12, 5)
        assert (int(saved["step"]), int(saved["seed_place"])) == (13, 1)
        np.testing.assert_array_equal(saved["rows_0"], rows)
        np.testing.assert_array_equal(saved["batch_0"], IMAGES[rows])
        np.testing.assert_array_equal(saved["batch_1"], TARGETS[rows])
    # What is on disk is finite, and no line has the bad numbers.
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [5, 10]
    assert [record["step"] for record in Metrics(tmp_path / "metrics.jsonl").read()] == [10]


def test_a_batch_that_is_not_finite_is_what_is_to_blame(tmp_path):
    rows = np.asarray(draw(4, 5)[0])
    targets = TARGETS.at[int(rows[0])].set(jnp.nan)
    with pytest.raises(NumericalError, match=r"loss is not finite at step \d+; likely cause: batch_1 of the batch is not finite to begin"):
        run(breaking("nothing"), tmp_path, 1, (IMAGES, targets))


def test_nothing_is_said_while_all_is_finite(tmp_path):
    state = run(breaking("nothing"), tmp_path, 7)
    assert np.isfinite(state["weights"]).all()
    assert not list(tmp_path.glob("*.npz"))


def test_the_parts_of_a_state_are_told_apart_and_whole_numbers_are_left_out():
    bad = not_finite(
        {"loss": jnp.float32(1)}, {"a": {"x": jnp.ones(2), "y": jnp.array([1.0, jnp.nan])}, "b": jnp.zeros(3), "n": jnp.arange(2)}
    )
    assert {name: bool(flag) for name, flag in bad.items()} == {"loss": False, "a": True, "b": False}
    assert {name: bool(flag) for name, flag in not_finite({}, jnp.array(-jnp.inf)).items()} == {"state": True}


def test_the_first_bad_step_of_all_seeds_is_found():
    flags = lambda *steps: {"loss": np.array([[step in steps, False] for step in range(3)]), "pool": np.zeros((3, 2), bool)}
    assert first_bad([(0, flags()), (3, flags())]) is None
    assert first_bad([(0, flags()), (3, flags(1, 2)), (6, flags(0))]) == (4, 0, ["loss"])
    assert first_bad([]) is None


def test_what_a_step_computes_first_is_named_first():
    assert explain(["weights", "other", "loss"], {"loss": "a", "weights": "b"}, {}) == ("loss, weights, other are not finite", "a")
