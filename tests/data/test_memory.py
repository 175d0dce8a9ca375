"""A dataset larger than the memory that a process is allowed is prepared and read."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

resource = pytest.importorskip("resource")
COUNT, SIDE, LIMIT = 2800, 256, 256 * 2**20

SCRIPT = textwrap.dedent(
    """
    import json, re, resource, sys
    from pathlib import Path
    import numpy as np
    from ssdd_jax.data import Options, OnDisk, channel_statistics, load_dataset

    if __name__ == "__main__":
        root, cache, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        split = load_dataset(f"folder:{root}", options=Options(), cache=cache).splits["train"]
        rows, order = OnDisk(split.images), np.random.RandomState(0).permutation(len(split.images))
        sums = [int(rows[part].sum(dtype=np.int64)) for part in np.array_split(order, 60)]
        channel_statistics(rows)
        status = Path("/proc/self/status").read_text()
        kilobytes = {key: int(re.search(key + r":\\s+(\\d+)", status)[1]) for key in ("VmRSS", "RssAnon")}
        print(json.dumps({"bytes": split.images.nbytes, "sum": sum(sums), **kilobytes}))
    """
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and shows memory as Linux does")
def test_more_pixels_than_memory_are_prepared_and_read_batch_by_batch(tmp_path):
    levels = np.arange(COUNT) % 251
    for i, level in enumerate(levels):
        file = tmp_path / "images" / f"class_{i % 2}" / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (int(level),) * 3).save(file, compress_level=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "images"), str(tmp_path / "cache"), str(LIMIT)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["bytes"] == COUNT * SIDE * SIDE * 3 > 2 * LIMIT
    assert found["sum"] == int(levels.sum()) * SIDE * SIDE * 3
    # Neither in its own memory nor as pages of the file does the process hold more than a few batches.
    assert found["RssAnon"] * 1024 < LIMIT
    assert found["VmRSS"] * 1024 < LIMIT
