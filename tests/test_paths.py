from pathlib import Path

import pytest

from ssdd_jax.errors import DataError, InputError
from ssdd_jax.paths import default_cache, local_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("runs/a", "runs/a"), ("file:///tmp/a%20b", "/tmp/a b"), ("file://localhost/tmp/a", "/tmp/a"), ("C:/x", "C:/x"), ("a:b", "a:b")],
)
def test_a_path_is_as_it_is_written_and_file_means_the_folder(text, expected):
    assert local_path(text, "--workdir") == Path(expected)
    assert local_path("~/a", "--workdir") == Path.home() / "a"


@pytest.mark.parametrize("text", ["s3://b/run", "gs://b", "hdfs://x/y", "file://elsewhere/run", "file://"])
def test_other_addresses_are_refused_with_what_to_do(text):
    with pytest.raises(InputError, match=r"--workdir is '.*', expected a path on this machine; mount the bucket .* and give its folder"):
        local_path(text, "--workdir")


def test_a_cache_without_a_home_says_what_to_set(monkeypatch):
    monkeypatch.delenv("SSDD_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-this-name/cache")
    with pytest.raises(DataError, match="set SSDD_JAX_CACHE"):
        default_cache()
    monkeypatch.setenv("SSDD_JAX_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
