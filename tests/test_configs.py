import ast
import json
from pathlib import Path

import numpy as np
import pytest
from published import text, write_tar

from ssdd_jax.cli import config_folder, parse, shipped_configs
from ssdd_jax.data.sources.idx import FASHION_MNIST_FOLDER
from ssdd_jax.errors import BudgetError
from ssdd_jax.main import main
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.registry import METHODS


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


VARIANTS = (
    "digits:kip",
    "digits:frepo",
    "digits:datm",
    "arrays:paper",
    "arrays:n50",
    "arrays:bits",
    "arrays:long",
    "arrays:auto",
    "arrays:labels",
    "fashion_mnist:cpu",
    "fashion_mnist:labels",
    "fashion_mnist:dsa",
    "fashion_mnist:frepo",
)


@pytest.mark.parametrize("name", [*shipped_configs(), *VARIANTS])
def test_every_config_builds_and_says_what_it_is(name):
    spec = parse(["--config", name, "--workdir", "x"]).spec
    assert spec.methods
    said = ast.get_docstring(ast.parse((config_folder() / f"{name.partition(':')[0]}.py").read_text()))
    assert said
    assert ":" not in name or f"`{name}`" in said


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


@pytest.mark.parametrize("variant", ["", ":paper", ":n50"])
def test_ours_of_arrays_has_the_views_that_pay_and_by_name_those_of_the_paper(variant):
    methods = parse(["--config", f"arrays{variant}", "--workdir", "x"]).spec.methods
    views = ("identity", "rot90", "rot180", "rot270") if variant else ("identity", "hflip")
    assert methods["ours"].views == views
    # The controls differ from it in nothing but views.
    for setting in ("base_size", "image_bases", "repr_bases", "learning_rate"):
        assert getattr(methods["ours"], setting) == getattr(methods["basis"], setting)


@pytest.mark.parametrize(("variant", "per_class"), [("n25", 0), ("", 1), ("n1000", 10), ("n5000", 50)])
def test_the_rows_of_label_sets_are_as_published_at_every_budget_of_cifar100(variant, per_class):
    spec = parse(["--config", f"cifar100:{variant}".rstrip(":"), "--workdir", "x"]).spec
    rows = {name: method for name, method in spec.methods.items() if method.kind != "regression"}
    assert list(rows) == ["random_labels", "dsa", "idm", "datm", "frepo", "kip", "mtt"]
    assert not set(rows) & set(spec.chosen_methods())
    sizes = Sizes(spec.num_pairs, (32, 32, 3), 512, 100, {})
    for name, method in rows.items():
        if not per_class and name != "random_labels":
            with pytest.raises(BudgetError):
                METHODS[method.kind].plan(name, method, sizes)
            continue
        if per_class:
            plan = METHODS[method.kind].plan(name, method, sizes)
            label = 100 if name in ("datm", "frepo") else 1
            assert (plan.num_images, plan.stored_scalars) == (100 * per_class, 100 * per_class * (3072 + label))
            assert plan.stored_scalars <= plan.budget


@pytest.mark.parametrize(("variant", "num_pairs", "ours"), [("", 100, 52.41), ("n25", 25, 51.41), ("n5000", 5000, 55.53)])
def test_the_papers_numbers_are_those_of_the_budget(variant, num_pairs, ours):
    evaluation = parse(["--config", f"cifar100:{variant}".rstrip(":"), "--workdir", "x"]).spec.evaluation
    told = evaluation.published["ours"]
    assert (told.dataset, told.num_pairs, told.students[0], told.values[0]) == ("cifar100", num_pairs, "convnet", ours)
    assert set(told.students) <= set(evaluation.students)


@pytest.mark.chaos
def test_the_smoke_variant_of_cifar100_runs_every_row_of_label_sets_on_files_in_its_format(tmp_path):
    draw, root = np.random.RandomState(0), "cifar-100-binary"
    record = lambda label: bytes([0, label]) + draw.randint(0, 256, 3072, np.uint8).tobytes()
    split = lambda count: b"".join(record(i % 100) for i in range(count))
    names = {f"{root}/{kind}_label_names.txt": text(*(f"{kind}{i}" for i in range(n))) for kind, n in (("fine", 100), ("coarse", 20))}
    write_tar(tmp_path / "cifar-100-binary.tar.gz", {**names, f"{root}/train.bin": split(800), f"{root}/test.bin": split(200)})
    rows = "random_labels,dsa,idm,datm,mtt,frepo,kip,krr_st"
    # As many pairs as hold an image and a label of every class.
    args = ("--config.num_pairs=130", "--config.data.limit=0", f"--config.data.data_dir={tmp_path}", f"--config.only={rows}")
    run_smoke("cifar100", tmp_path, *args)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["method"] for row in results["rows"]} >= {*rows.split(","), "dsa-teacher", "datm-teacher"}
    assert not any("failed" in row for row in results["rows"])
    assert results["absent"] == {}
