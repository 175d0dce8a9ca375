"""How the process takes memory from the system."""

import ctypes
import os

from ssdd_jax.cores import available_cores

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Let the process keep the memory that it frees, instead of taking it from the system anew for every program that XLA runs.

    XLA's CPU backend allocates the memory of a program whenever it runs. Above 32 MB glibc gives such memory back at once, and from other
    threads than the first in any case, so that every step of an outer loop touches new pages: a quarter of its time. There are as many
    arenas as XLA has threads, one a core, and one for the main thread: with fewer the threads wait for each other (with one, a step on
    two cores took up to 1.4 times as long), and with glibc's eight a core memory is given back again. Nothing is done where the C
    library is another, or where it has been told how to allocate (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        for option, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, available_cores() + 1)):
            libc.mallopt(option, value)
