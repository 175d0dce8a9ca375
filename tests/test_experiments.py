"""The scripts of experiments/ import what they name, also those that are run by hand alone."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "experiments").rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports(script):
    try:
        assert importlib.import_module(script).__name__ == script
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        pytest.skip("needs PyTorch")
