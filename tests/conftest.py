import atexit
import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import platform
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# One folder for all worker processes, made by the first: what tests prepare, apart from the user's own, and what jax compiles.
if "SSDD_JAX_TESTS" not in os.environ:
    os.environ["SSDD_JAX_TESTS"] = tempfile.mkdtemp(prefix="ssdd_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["SSDD_JAX_TESTS"], ignore_errors=True)
os.environ["SSDD_JAX_CACHE"] = os.path.join(os.environ["SSDD_JAX_TESTS"], "data")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["SSDD_JAX_TESTS"], "compiled")
# On jax 0.5 what is read from it is wrong, see compat.cache_is_sound.
if importlib.metadata.version("jax").startswith("0.5."):
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
# A run compiles some hundred programs, most of them small, and the tests' runs have most in common.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Compiling takes most of the time, and compiling well most of that. `make test-oldest` and `make chaos` compile as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's newer emitters of fusions take most of what is left. The older ones contract a multiplication and an addition in one copy of a sum
# and not in another, so that floor(x) and x - floor(x) may disagree: AVX has no such instruction. A flag that jaxlib 0.5 does not know
# would end the process.
if (
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    and platform.machine() == "x86_64"
    and not importlib.metadata.version("jaxlib").startswith("0.5.")
):
    quick = " --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").replace(quick, "") + quick

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# The annotations of the core are checked at every call. A test of what the functions themselves refuse calls `inspect.unwrap(fn)`.
with install_import_hook("ssdd_jax.core", "beartype.beartype"):
    import ssdd_jax.core

    CORE = [importlib.import_module(module.name) for module in pkgutil.walk_packages(ssdd_jax.core.__path__, "ssdd_jax.core.")]

# A state's annotations are those of one; stacked, or as jax rebuilds it around placeholders, its leaves are others.
for module in CORE:
    for _, cls in inspect.getmembers(module, dataclasses.is_dataclass):
        cls.__init__ = inspect.unwrap(cls.__init__)

# What undoes these flags, for one program.
AS_USERS_DO = (
    {"xla_cpu_use_fusion_emitters": True, "xla_cpu_max_isa": "", "xla_cpu_parallel_codegen_split_count": 32}
    if "xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
    else {}
)

# The first example of a property compiles, and a run that fails must fail again.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--chaos", action="store_true", help="also run the tests marked chaos")


# Files that take longest come first, so that no worker is left alone with one at the end.
LONGEST = [
    "test_students",
    "test_outer",
    "test_nets",
    "test_main",
    "test_evaluate",
    "test_data",
    "test_approximation",
    "test_infinite",
    "test_newcomers",
    "test_distilled",
    "test_torch_weights",
    "test_edges",
    "test_step_memory",
    "test_diff_augment",
    "test_augment",
    "test_datm",
    "test_frepo",
    "test_idm",
    "test_dsa",
    "test_experts",
    "test_pooled",
    "test_kip",
    "test_barlow_twins",
    "test_teacher",
    "test_published",
    "test_provenance",
    "test_stop",
    # Of `make chaos`.
    "test_kills",
    "test_hosts",
    "test_storage",
    "test_devices",
]


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.parent.name == "chaos":
            item.add_marker(pytest.mark.chaos)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if not config.getoption("--chaos"):
        for item in items:
            if item.get_closest_marker("chaos"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: make chaos"))


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def float64():
    """Switch 64-bit numbers on, for parity with an oracle; jax 0.8 moved the switch."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental").enable_x64():
        yield


@pytest.fixture(scope="module")
def compiled_well():
    """Compile as users do, for tests of what the compiler makes; return the options that `compile` takes for it."""
    flag = "jax_disable_most_optimizations"
    before, environment = jax.config.read(flag), os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.clear_caches()
    jax.config.update(flag, False)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    yield AS_USERS_DO
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = environment
    jax.config.update(flag, before)
    jax.clear_caches()
