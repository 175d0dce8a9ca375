"""The persistent compilation cache of jax."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from ssdd_jax import compat

# A run has some two hundred small programs, of which each is read back in a tenth of the time that it takes to compile.
MIN_SECONDS = 0.0


def use_cache(folder: Path) -> str:
    """Keep compiled programs in a folder, unless the user has named another ($JAX_COMPILATION_CACHE_DIR) or switched the cache off.

    Code for one CPU need not run on another, so each kind of CPU has its own folder.

    Returns:
        A line on why the cache is off although it was not switched off, or ''.
    """
    settings: Any = jax.config
    if settings.jax_enable_compilation_cache and not compat.cache_is_sound():
        jax.config.update("jax_enable_compilation_cache", False)
        return f"the compilation cache is off: on CPUs jax {jax.__version__} reads factorisations back wrongly; take jax 0.6 or later"
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return ""
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled" / processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return ""


def processor() -> str:
    """Return a name for the kind of processor and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    except OSError:
        features = [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(os.linesep.join(features).encode()).hexdigest()[:12]}"
