"""The scripts of experiments/ import what they name, also those that are run by hand alone."""

import importlib
import sys
from pathlib import Path

import pytest

from experiments import embed_timm
from ssdd_jax import load_dataset
from ssdd_jax.stages.features import read_features

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


def test_embed_timm_says_in_one_line_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    flags = ["--source", "digits", "--model", "resnet10t", "--out", str(tmp_path / "features.npz")]
    for more, message in (([], "pip install ssdd-jax[timm]"), (["--views=rot45"], "--views has rot45, expected some of identity, rot90")):
        assert embed_timm.main([*flags, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert not list(tmp_path.iterdir())


def test_embed_timm_makes_features_of_every_split_and_view(tmp_path):
    pytest.importorskip("timm")
    flags = ["--source", "digits", "--model", "resnet10t", "--random_weights", "--views=identity,rot90"]
    assert embed_timm.main([*flags, "--out", str(tmp_path / "features.npz")]) == 0
    found, splits = read_features(str(tmp_path / "features.npz"), "train").arrays, load_dataset("digits").splits
    assert {name: len(array) for name, array in found.items()} == {
        "identity": len(splits["train"].images),
        "rot90": len(splits["train"].images),
        "test": len(splits["test"].images),
    }
