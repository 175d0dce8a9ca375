import ctypes
import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from ssdd_jax.runtime.allocation import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
np.ones(64 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(64 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def faults(how, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run([sys.executable, "-c", FAULTS, how], env=env | environment, capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again():
    # numpy asks for huge pages, so that 64 MiB are anything from 32 pages on.
    assert faults("as it is") >= 4 * 32
    assert faults("keep") < 32
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="0") >= 4 * 32
