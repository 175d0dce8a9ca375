import json
import struct

import numpy as np
import pytest
from PIL import Image

wandb = pytest.importorskip("wandb")
Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record

BLOCK, HEAD = 2**15, 7


def records_in(file):
    """Return the records of a run's file: blocks of parts with a checksum, a length and whether a record begins, goes on or ends there."""
    content, at, begun, records = file.read_bytes(), HEAD, b"", []
    while at + HEAD <= len(content):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEAD])
        begun += content[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):
            records.append(Record.FromString(begun))
            begun = b""
    return records


def test_an_offline_run_holds_what_was_logged(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run.log("wandb")
    # As at the end of a process: until then another one may still be writing.
    wandb.teardown()
    (folder,) = (run.workdir / "logs" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    records = records_in(file)
    (about,) = [record.run for record in records if record.HasField("run")]
    assert (about.project, about.display_name) == ("toy", "my_run")
    settings = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert {key: settings[key] for key in run.settings} == run.settings
    name = lambda item: item.key or "/".join(item.nested_key)
    lines = [{name(item): json.loads(item.value_json) for item in r.history.item} for r in records if r.HasField("history")]
    teacher, losses, pictures, tables = [{key: value for key, value in line.items() if not key.startswith("_")} for line in lines]
    assert teacher == {"teacher/loss": 0.5, "teacher/probe_accuracy": 0.25, "teacher/step": 50}
    assert losses == {"distill/ours/loss/seed_0": 1.0, "distill/ours/loss/seed_1": 2.0, "distill/ours/step": 50}
    assert pictures["distill/ours/step"] == 50
    assert np.array_equal(Image.open(folder / "files" / pictures["distill/ours/images/seed_1/path"]), run.picture)
    table = json.loads((folder / "files" / tables["Results/path"]).read_text())
    assert (table["columns"], table["data"]) == (run.header, run.rows)
    steps = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
    assert steps == {"teacher/*": "teacher/step", "distill/ours/*": "distill/ours/step"}
