import io
import struct

import numpy as np
import pytest
from PIL import Image

Event = pytest.importorskip("tensorboardX.proto.event_pb2").Event


def events_in(file):
    """Return the events of a file: records of a length, its checksum, the content and its checksum."""
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_an_event_file_holds_what_was_logged(run):
    run.log("tensorboard")
    (file,) = (run.workdir / "logs" / "tensorboard").iterdir()
    values = {value.tag: (event.step, value) for event in events_in(file) for value in event.summary.value}
    assert {tag: (step, value.simple_value) for tag, (step, value) in values.items() if value.HasField("simple_value")} == {
        "teacher/loss": (50, 0.5),
        "teacher/probe_accuracy": (50, 0.25),
        "distill/ours/loss/seed_0": (50, 1.0),
        "distill/ours/loss/seed_1": (50, 2.0),
    }
    step, picture = values["distill/ours/images/seed_1"]
    assert step == 50
    assert np.array_equal(Image.open(io.BytesIO(picture.image.encoded_image_string)), run.picture)
    (table,) = [value.tensor.string_val[0].decode() for tag, (_, value) in values.items() if tag.startswith("Results")]
    assert table.splitlines() == ["| method | linear probe |", "|:--|--:|", "| krr_st | 75.0 |", "| ours | 76.1 |"]
    settings = values["_hparams_/session_start_info"][1].metadata.plugin_data.content
    assert b"outer.steps" in settings
    assert b"[0, 1]" in settings
