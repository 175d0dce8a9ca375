import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.errors import InputError
from ssdd_jax.io.checkpoints import KEEP, Checkpoints


def state(value):
    params = {"w": jnp.full((2, 3), value), "none": None}
    return {"params": params, "opt": optax.adam(1e-2).init(params), "step": jnp.asarray(int(value), jnp.int32)}


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
    with Checkpoints(tmp_path / "a b") as checkpoints:
        assert checkpoints.restore(state(0.0)) is None
        for step in (1, 4, 9):
            checkpoints.save(step, state(step / 3))
    with Checkpoints(tmp_path / "a b") as checkpoints:
        step, restored = checkpoints.restore(state(0.0))
    assert step == 9
    np.testing.assert_array_equal(restored["params"]["w"], state(3.0)["params"]["w"])
    assert restored["params"]["none"] is None
    assert restored["opt"][0].count == 0


def test_old_checkpoints_are_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state(step))
    assert len([child for child in tmp_path.iterdir() if child.name.isdigit()]) == KEEP


def test_a_checkpoint_of_another_shape_or_structure_is_named_and_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3)})
        with pytest.raises(InputError, match=r"\['a'\] has .*\(3,\).*expected .*\(4,\)"):
            checkpoints.restore({"a": jnp.zeros(4)})
        with pytest.raises(InputError, match=r"expected .*int32"):
            checkpoints.restore({"a": jnp.zeros(3, jnp.int32)})
        with pytest.raises(InputError, match=r"\['b'\] is not in both"):
            checkpoints.restore({"a": jnp.zeros(3), "b": jnp.zeros(1)})
