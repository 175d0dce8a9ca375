import hashlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.files import json_digest, write_json

pytestmark = pytest.mark.core


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
        assert re.search(r"9 is damaged \(.*\) and was renamed to 9.damaged; going on from 4", lines[0])
        shutil.rmtree(folder)


def test_a_checkpoint_whose_saving_was_cut_off_is_as_if_it_had_not_begun(tmp_path):
    saved(tmp_path)
    (tmp_path / "9.sha256.json").unlink()
    step, lines = restored(tmp_path)
    assert step == 4
    assert re.search(r"9 has no 9.sha256.json, as when saving is interrupted; it is removed", lines[0])
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
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(StorageError, match=r"no intact checkpoint is left.*delete that folder"):
        checkpoints.restore(state(0.0))


def test_a_state_may_be_given_away_as_soon_as_it_is_saved(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    value = jnp.zeros((300, 300))
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 4):
            value = advance(value)
            checkpoints.save(step, {"a": value})
            value = advance(value)
    with Checkpoints(tmp_path) as checkpoints:
        step, found = checkpoints.restore({"a": value})
    assert step == 3
    np.testing.assert_array_equal(found["a"], 5.0)


def test_what_goes_wrong_while_writing_is_raised_later_and_loses_no_earlier_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, (1, 4))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    expected = (
        r"cannot save a checkpoint in .*no space left: .* MB are needed and 0.0 MB are free; free space and run the same command again"
    )
    with pytest.raises(StorageError, match=expected), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, state(9.0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(9, state(9.0))
    with pytest.raises(StorageError, match=expected):
        checkpoints.save(10, state(10.0))
    monkeypatch.undo()
    assert restored(tmp_path) == (4, [])


def test_an_error_under_way_is_not_replaced_by_that_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))

    def fail():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(9, state(9.0))
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail()


def test_every_so_many_steps_a_checkpoint_stays(tmp_path):
    with Checkpoints(tmp_path, keep=3, keep_every=4) as checkpoints:
        for step in range(1, 12):
            checkpoints.save(step, state(float(step)))
        assert checkpoints.steps == [4, 8, 9, 10, 11]
    with pytest.raises(InputError, match="keep is 1, expected at least 2"):
        Checkpoints(tmp_path, keep=1)


def test_checkpoints_are_due_by_steps_and_by_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Checkpoints(tmp_path, every=10, minutes=5.0) as checkpoints:
        assert [step for step in range(1, 31) if checkpoints.due(step)] == [10, 20, 30]
        now[0] = 301.0
        assert checkpoints.due(7)
        checkpoints.save(7, state(7.0))
        assert not checkpoints.due(8)
    assert not Checkpoints(tmp_path, every=0, minutes=0.0).due(10)


def test_seconds_are_counted_over_all_attempts(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for step in (1, 2):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.restore(state(0.0))
            now[0] += 100.0
            checkpoints.save(step, state(float(step)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state(0.0))
        assert checkpoints.seconds_before == 200.0


def test_a_record_says_what_wrote_the_checkpoint_and_others_are_warned_of_other_bits(tmp_path):
    about = {"settings": {"a": 1}, "versions": {"jax": "0.9.2", "numpy": "2"}, "device": "1 x cpu"}
    with Checkpoints(tmp_path, about=about) as checkpoints:
        checkpoints.save(1, state(1.0), {"mine": 3})
    record = json.loads((tmp_path / "1.sha256.json").read_text())
    assert record["about"] == about
    assert record["notes"]["mine"] == 3
    w = record["leaves"]["['params']['w']"]
    assert w == {"shape": [2, 3], "dtype": "float32", "sha256": hashlib.sha256(np.full((2, 3), 1.0, np.float32).tobytes()).hexdigest()}
    lines = []
    with Checkpoints(tmp_path, about={**about, "versions": {"jax": "0.10.2", "numpy": "2"}, "device": "2 x cpu"}) as checkpoints:
        assert checkpoints.restore(state(0.0), lines.append)[0] == 1
        assert checkpoints.notes["mine"] == 3
    assert len(lines) == 1
    assert "jax 0.9.2 -> 0.10.2" in lines[0]
    assert "device 1 x cpu -> 2 x cpu" in lines[0]
    with Checkpoints(tmp_path, about=about) as checkpoints:
        checkpoints.restore(state(0.0), pytest.fail)


def test_arrays_without_elements_come_back(tmp_path):
    full = {"none": jnp.zeros((3, 0)), "some": jnp.ones(2)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, full)
        _, found = checkpoints.restore(jax.tree.map(jnp.zeros_like, full))
    assert found["none"].shape == (3, 0)
    np.testing.assert_array_equal(found["some"], 1.0)


def test_a_leaf_that_reads_as_another_is_damage_although_its_files_are_whole(tmp_path):
    saved(tmp_path)
    # As if Orbax had written other bytes than it was given.
    file = tmp_path / "9.sha256.json"
    record = json.loads(file.read_text())
    record.pop("sha256")
    record["leaves"]["['params']['w']"]["sha256"] = "0" * 64
    write_json(file, {**record, "sha256": json_digest(record)})
    step, lines = restored(tmp_path)
    assert step == 4
    assert "['params']['w'] has changed since it was saved" in lines[0]
