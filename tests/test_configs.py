import ast
from pathlib import Path

import numpy as np
import pytest

from ssdd_jax.cli import config_folder, parse, shipped_configs
from ssdd_jax.data.sources.idx import FASHION_MNIST_FOLDER
from ssdd_jax.main import main


@pytest.fixture
def arrays(tmp_path, request):
    """A small .npz of the shape that a config expects."""
    side, classes = request.param
    draw = np.random.RandomState(0)
    split = lambda n: (draw.randint(0, 256, (n, side, side, 3), np.uint8), np.arange(n) % classes)
    (x_train, y_train), (x_test, y_test) = split(400), split(100)
    np.savez(tmp_path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path / "data.npz"


def run_smoke(name, workdir, *args):
    assert main(["--config", f"{name}:smoke", "--workdir", str(workdir / "run"), *args]) == 0
    assert (workdir / "run" / "report" / "results.md").is_file()


@pytest.mark.parametrize("name", shipped_configs())
def test_every_config_builds_and_says_what_it_is(name):
    spec = parse(["--config", name, "--workdir", "x"]).spec
    assert spec.methods
    assert ast.get_docstring(ast.parse((config_folder() / f"{name}.py").read_text()))


@pytest.mark.chaos
def test_the_smoke_variant_of_digits_runs(tmp_path):
    run_smoke("digits", tmp_path)


@pytest.mark.chaos
@pytest.mark.skipif(not Path(FASHION_MNIST_FOLDER).exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_smoke_variant_of_fashion_mnist_runs(tmp_path):
    run_smoke("fashion_mnist", tmp_path, "--config.only=random,ours")


@pytest.mark.chaos
@pytest.mark.parametrize("arrays", [(32, 10)], indirect=True)
@pytest.mark.parametrize("name", ["arrays", "cifar100"])
def test_the_smoke_variant_of_colour_images_runs(name, arrays, tmp_path):
    # A ViT has a recipe of its own.
    students = "--config.evaluation.only=convnet,vit"
    run_smoke(name, tmp_path, f"--config.data.source=arrays:{arrays}", "--config.only=raw_small,ours", students)
