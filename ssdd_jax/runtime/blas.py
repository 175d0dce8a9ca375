"""How many threads LAPACK has while steps run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from threadpoolctl import threadpool_limits

from ssdd_jax.runtime.devices import on_cpu

THREADS = "OPENBLAS_NUM_THREADS"


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let OpenBLAS, which factorizes for XLA on CPUs, use one thread meanwhile, unless `OPENBLAS_NUM_THREADS` says how many.

    Its other threads busy-wait for the next factorization: they take a core from the rest of an outer step, which then takes 1.3 times as
    long on two cores; and up to 2,048 rows one thread factorizes as fast as two or faster.
    """
    if not on_cpu() or os.environ.get(THREADS):
        yield
        return
    # jax loads the library with the first program that factorizes; what is not loaded yet cannot be told.
    import_module("scipy.linalg.cython_lapack")
    with threadpool_limits(1, user_api="blas"):
        yield
