import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ssdd_jax

PACKAGE = Path(ssdd_jax.__file__).parent
# What each part may import of the package: imports go one way.
ALLOWED = {
    "cores": set(),
    "errors": set(),
    "rng": set(),
    "terminal": set(),
    "compat": set(),
    "progress": {"terminal"},
    "paths": {"errors"},
    "registry": {"errors"},
    "settings": {"errors", "registry", "settings"},
    "core": {"core", "rng", "settings"},
    "nets": {"core", "errors", "nets", "registry", "settings"},
    "kernels": {"core", "kernels", "settings"},
    "methods": {"core", "errors", "kernels", "methods", "nets", "registry", "rng", "settings"},
    "evals": {"core", "errors", "evals", "nets", "registry", "rng", "settings"},
    "teacher": {"core", "evals", "nets", "settings", "teacher"},
    "io": {"core", "errors", "io", "registry", "settings", "terminal"},
    "data": {"cores", "data", "errors", "io", "paths", "progress", "registry"},
    "report": {"core", "errors", "io", "paths", "report"},
    "runtime": {"compat", "core", "cores", "data", "errors", "io", "progress", "runtime", "settings"},
    "cli": {"paths", "errors", "registry", "settings", "terminal"},
    "main": {"cli", "errors", "runtime", "stages", "terminal"},
}
# What puts it all together.
ALLOWED["stages"] = set(ALLOWED) - {"cli", "main"} | {"stages"}
ALLOWED["api"] = set(ALLOWED) - {"cli", "main"}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_public_name_imports_and_is_documented():
    for name in ssdd_jax.__all__:
        value = getattr(ssdd_jax, name)
        assert name.startswith("__") or isinstance(value, dict) or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        ssdd_jax.distil  # noqa: B018


def test_imports_go_one_way():
    files = [file for file in PACKAGE.rglob("*.py") if "configs" not in file.parts and file.parent != PACKAGE]
    files += [file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]
    seen = set()
    for file in files:
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imported(file):
            if module.startswith("ssdd_jax."):
                target = module.split(".")[1]
                assert target in ALLOWED[part], f"{file} imports {module}"
                seen.add((part, target))
    assert ("stages", "core") in seen


def test_the_core_imports_nothing_but_jax_flax_struct_optax_and_jaxtyping():
    roots = {"jax", "flax", "optax", "jaxtyping", "ssdd_jax", *sys.stdlib_module_names}
    for file in (PACKAGE / "core").rglob("*.py"):
        for module in imported(file):
            assert module.split(".")[0] in roots, f"{file} imports {module}"


def test_every_folder_is_a_package_that_the_wheel_takes_along():
    folders = {file.parent for file in PACKAGE.rglob("*.py") if "configs" not in file.parts}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_there_is_no_file_whose_name_says_nothing():
    assert not [file for file in PACKAGE.rglob("*.py") if file.stem in {"utils", "util", "helpers", "misc", "common"}]


def modules_after(code):
    script = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split())


def test_the_library_imports_neither_absl_flags_nor_configs_nor_orbax():
    names = [name for name in ssdd_jax.__all__ if not name.startswith("__")]
    loaded = modules_after(f"from ssdd_jax import {', '.join(names)}")
    assert "jax" in loaded
    assert not loaded & {"ml_collections", "orbax", "sklearn", "matplotlib"}
    assert "absl" not in {module.split(".")[0] for file in PACKAGE.rglob("*.py") if file.name != "cli.py" for module in imported(file)}


def test_reading_a_config_needs_no_jax():
    assert "jax" not in modules_after("from ssdd_jax.cli import parse\nparse(['--config', 'digits', '--workdir', 'x'])")
