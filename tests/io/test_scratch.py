"""Arrays that are needed for a while."""

import numpy as np
import pytest

from ssdd_jax.errors import StorageError
from ssdd_jax.io import files
from ssdd_jax.io.scratch import Scratch


def test_small_arrays_are_in_memory_and_large_ones_in_a_file_without_a_name(tmp_path):
    scratch = Scratch(tmp_path / "folder", 100)
    small, large = scratch((5, 5)), scratch((6, 5))
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    assert small.dtype == large.dtype == np.float32
    large[2:4] = 7
    assert large.sum() == 70
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_file_that_does_not_fit_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.raises(StorageError, match=r"cannot hold 0\.00 GB of features in .*: no space left: .*; free space and run again"):
        Scratch(tmp_path, 0)((10, 20))
