import re
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.io.checkpoints import Checkpoints


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
    assert sorted(child.name for child in tmp_path.iterdir()) == ["4", "4.sha256.json", "5", "5.sha256.json"]


def test_a_checkpoint_of_another_shape_or_structure_is_named_and_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3)})
        with pytest.raises(InputError, match=r"\['a'\] has .*\(3,\).*expected .*\(4,\)"):
            checkpoints.restore({"a": jnp.zeros(4)})
        with pytest.raises(InputError, match=r"expected .*int32"):
            checkpoints.restore({"a": jnp.zeros(3, jnp.int32)})
        with pytest.raises(InputError, match=r"\['b'\] is not in both"):
            checkpoints.restore({"a": jnp.zeros(3), "b": jnp.zeros(1)})


def saved(folder, steps=(1, 4, 9)):
    """Save checkpoints of some steps, whose states differ."""
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(float(step)))
    return sorted(file for file in (folder / str(steps[-1])).rglob("*") if file.is_file())


def restored(folder):
    """Return the step and the value of the checkpoint that is taken, and what was said of others."""
    lines = []
    with Checkpoints(folder) as checkpoints:
        step, found = checkpoints.restore(state(0.0), lines.append)
    np.testing.assert_array_equal(found["params"]["w"], state(float(step))["params"]["w"])
    assert int(found["step"]) == step
    return step, lines


def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_taken(tmp_path):
    files = saved(tmp_path / "whole")
    files.append(tmp_path / "whole" / "9.sha256.json")
    random = np.random.RandomState(0)
    for trial in range(60):
        folder = tmp_path / f"trial{trial}"
        shutil.copytree(tmp_path / "whole", folder)
        file = folder / files[trial % len(files)].relative_to(tmp_path / "whole")
        content = bytearray(file.read_bytes() or b" ")
        content[random.randint(len(content))] ^= 1 << random.randint(8)
        file.write_bytes(content)
        step, lines = restored(folder)
        assert step == 4, file
        assert (folder / "9.damaged").is_dir()
        assert re.search(r"9 is damaged \(.*\) and now called 9.damaged; going on from 4", lines[0])
        shutil.rmtree(folder)


def test_a_checkpoint_whose_saving_was_cut_off_is_as_if_it_had_not_begun(tmp_path):
    saved(tmp_path)
    (tmp_path / "9.sha256.json").unlink()
    assert restored(tmp_path) == (4, [])
    assert not (tmp_path / "9").exists()
    with Checkpoints(tmp_path / "first") as checkpoints:
        checkpoints.save(1, state(1.0))
    (tmp_path / "first" / "1.sha256.json").unlink()
    with Checkpoints(tmp_path / "first") as checkpoints:
        assert checkpoints.restore(state(0.0)) is None


@pytest.mark.parametrize("damage", ["halve", "remove", "empty", "more"])
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_taken(tmp_path, damage):
    files = saved(tmp_path)
    largest = max(files, key=lambda file: file.stat().st_size)
    if damage == "halve":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif damage == "remove":
        largest.unlink()
    elif damage == "more":
        (tmp_path / "9" / "state" / "foreign").write_bytes(b"x")
    else:
        for file in files:
            file.unlink()
    step, lines = restored(tmp_path)
    assert step == 4
    assert "9 is damaged" in lines[0]
    # The next run takes the good one without a word, and can save the step again.
    assert restored(tmp_path) == (4, [])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, state(9.0))
    assert restored(tmp_path)[0] == 9


def test_when_no_checkpoint_is_whole_the_run_does_not_start_again_by_itself(tmp_path):
    saved(tmp_path)
    for step in (4, 9):
        for file in (tmp_path / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(StorageError, match=r"no whole checkpoint is left.*delete that folder"):
        checkpoints.restore(state(0.0))
