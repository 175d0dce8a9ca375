import json
import sqlite3

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return the folder that Trackio writes to, which it chooses when it is imported."""
    # Imported here: it looks for the folder then.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    return trackio.utils.TRACKIO_DIR


def test_the_local_store_holds_what_was_logged(run, store):
    run.log("trackio")
    with sqlite3.connect(store / "toy.db") as database:
        found = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY rowid").fetchall()
        (settings,) = database.execute("SELECT config FROM configs").fetchone()
    assert json.loads(settings).items() >= {"outer.steps": 5, "seeds": "[0, 1]"}.items()
    assert {name for name, _, _ in found} == {"my_run"}
    teacher, losses, pictures, tables = [(step, json.loads(values)) for _, step, values in found]
    assert teacher == (50, {"teacher/loss": 0.5, "teacher/probe_accuracy": 0.25})
    assert losses == (50, {"distill/ours/loss/seed_0": 1.0, "distill/ours/loss/seed_1": 2.0})
    assert pictures[0] == 50
    picture = Image.open(store / "media" / pictures[1]["distill/ours/images/seed_1"]["file_path"])
    assert np.array_equal(picture.convert("RGB"), run.picture)
    assert tables[1]["Results"]["_value"] == [dict(zip(run.header, row, strict=True)) for row in run.rows]
