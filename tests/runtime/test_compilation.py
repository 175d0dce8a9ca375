import os
import subprocess
import sys

import jax
import pytest

from ssdd_jax.runtime.compilation import processor, use_cache

RUN = [sys.executable, "-m", "ssdd_jax.main", "--config", "digits:smoke", "--config.only=krr_st", "--task=distill"]
RUN += ["--config.teacher.steps=0"]


@pytest.mark.chaos
def test_what_one_run_compiles_the_next_one_reads(tmp_path):
    # Compiled quickly, a loop might take about as long as what is kept at least.
    environment = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "SSDD_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }
    del environment["JAX_COMPILATION_CACHE_DIR"]
    times = []
    for name in ("first", "second"):
        done = subprocess.run([*RUN, "--workdir", str(tmp_path / name)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if "distill/krr_st/seeds_0: first step after" in line]
        entries = {file.name for file in (tmp_path / "cache" / "compiled" / processor()).glob("jit_dispatch-*-cache")}
        times.append((line, entries))
    # The second run finds all loops: it adds none. What takes about as long to compile as is kept at least may be added by either.
    assert times[0][1] == times[1][1] != set()
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("first", "second")]
    assert metrics[0] == metrics[1]


def test_a_folder_that_the_user_has_named_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before is not None
    use_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_that_is_read_back_wrongly_is_off_and_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("ssdd_jax.compat.cache_is_sound", lambda: False)
    before = jax.config.jax_enable_compilation_cache
    try:
        assert "the compilation cache is off" in use_cache(tmp_path)
        assert not jax.config.jax_enable_compilation_cache
        # Nothing is left to say.
        assert use_cache(tmp_path) == ""
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
