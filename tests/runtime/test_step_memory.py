"""What a step takes is known before it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK_TEACHER

from ssdd_jax import expand, load_distilled
from ssdd_jax.core.batching import MIN_CHUNK
from ssdd_jax.main import main
from ssdd_jax.nets import make_learner
from ssdd_jax.runtime.memory import TooLarge, check_fits, chunk_size, limit_bytes, step_bytes
from ssdd_jax.settings.spec import MemorySpec

ARGS = ["--config", "digits:smoke", "--config.only=krr_st", "--config.num_pairs=200", "--config.student.widths=(16,32)", "--task=distill"]
ARGS += QUICK_TEACHER


def test_what_a_step_takes_is_its_arguments_results_and_what_is_in_between():
    compiled = jax.jit(lambda x: jnp.outer(x, x).sum(0)).lower(jnp.ones(1000)).compile()
    assert 8_000 <= step_bytes(compiled) < 4_100_000
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.ones(1000)).compile()
    assert step_bytes(compiled) == 4_000


def test_more_than_the_limit_is_refused_with_both_numbers():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(1000)).compile()
    check_fits(compiled, 8_000)
    with pytest.raises(TooLarge, match="a step takes 8e-06 GB of memory, there is 7e-06 GB"):
        check_fits(compiled, 7_000)


def test_the_limit_is_that_of_the_settings_or_of_the_machine():
    assert limit_bytes(MemorySpec(limit_gb=0.5)) == 500_000_000
    assert limit_bytes(MemorySpec()) > 1_000_000_000


def test_on_a_cpu_as_many_rows_pass_together_as_stay_in_its_caches():
    large, shape = make_learner("convnet", (), (32, 32, 3), 8), (32, 32, 3)
    # Its first convolution gives 32 x 32 x 128 numbers of four bytes, half a megabyte, an image.
    assert chunk_size(MemorySpec(), large, shape) == MIN_CHUNK == 2**24 // (32 * 32 * 128 * 4)
    small = make_learner("convnet", (16, 32), (8, 8, 1), 8)
    assert chunk_size(MemorySpec(), small, (8, 8, 1)) == 2**24 // (8 * 8 * 16 * 4)
    assert chunk_size(MemorySpec(chunk_size=7), large, shape) == 7
    # A network of products alone has no maps to count.
    flat = small._replace(features=lambda variables, images: images.reshape(len(images), -1))
    assert chunk_size(MemorySpec(), flat, (8, 8, 1)) >= MIN_CHUNK


def run(workdir, *args):
    return main([*ARGS, "--workdir", str(workdir), *args])


@pytest.mark.chaos
def test_a_step_that_does_not_fit_is_refused_with_the_nearest_that_does_which_then_runs(tmp_path, capsys):
    assert run(tmp_path, "--config.memory.limit_gb=0.002") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "krr_st: a step takes" in message
    assert "there is 0.002 GB; what fits is --config.memory.remat=True" in message
    settings = [word for word in message.split() if word.startswith("--config.")]
    assert run(tmp_path, "--config.memory.limit_gb=0.002", "--accept_changes", *settings) == 0
    output = capsys.readouterr().out
    assert "distill/krr_st/seeds_0: a step takes 0.00" in output
    assert "first step after" in output
    assert (tmp_path / "distilled" / "krr_st" / "seed_0" / "manifest.json").is_file()


def test_a_teacher_that_does_not_fit_is_refused_with_what_to_lower(tmp_path, capsys):
    assert run(tmp_path / "teacher", "--config.memory.limit_gb=1e-6") == 2
    assert "lower config.teacher.batch_size (32)" in capsys.readouterr().err


@pytest.mark.chaos
def test_an_outer_step_that_fits_in_no_way_is_refused_with_what_to_lower(tmp_path, capsys):
    # The teacher's step fits; that of the outer loop does not, however few images take part.
    assert run(tmp_path, "--config.memory.limit_gb=0.001", "--config.outer.batch_size=1024") == 2
    assert "lower config.outer.batch_size, or take a smaller config.student" in capsys.readouterr().err


def test_memory_changes_a_run_by_rounding_alone(tmp_path):
    arrays = []
    for name, settings in {"plain": (), "parts": ("--config.memory.chunk_size=8", "--config.memory.remat=True")}.items():
        assert run(tmp_path / name, "--config.num_pairs=10", "--config.teacher.steps=0", *settings) == 0
        arrays.append(expand(load_distilled(tmp_path / name / "distilled" / "krr_st" / "seed_0")))
    for mine, theirs in zip(*arrays, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)
