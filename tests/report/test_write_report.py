"""The whole report of a small run: complete, linked, and honest about what it leaves out."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.errors import InputError
from ssdd_jax.report import results_table, to_markdown, views_table, write_report
from ssdd_jax.report.contents import NO_NEAREST
from ssdd_jax.report.nearest import FILE
from ssdd_jax.report.run import loss_curves
from ssdd_jax.report.write import NO_PLOTS

PICTURES = {"krr_st-images.png", "ours-bases.png", "ours-images.png", "ours-views.png"}


@pytest.fixture
def without_matplotlib(monkeypatch):
    # None in sys.modules makes an import of the name fail.
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def check_links(folder):
    """Every picture in the text is a readable PNG, and every PNG is in the text; the page stands by itself."""
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (folder / "results.md").read_text())
    for name in linked:
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.format == "PNG"
    assert {file.name for file in folder.iterdir()} == {"results.md", "index.html", "nearest.safetensors", *linked}
    assert len(linked) == len(set(linked))
    return set(linked)


pytestmark = pytest.mark.usefixtures("with_page")


@pytest.fixture(scope="module")
def with_page():
    pytest.importorskip("jinja2")
    pytest.importorskip("vl_convert")


def test_the_report_is_complete(workdir, results):
    pytest.importorskip("matplotlib")
    assert write_report(workdir) == []
    assert check_links(workdir / "report") == PICTURES | {"loss.png"}
    text = (workdir / "report" / "results.md").read_text()
    assert text.startswith("# toy run\n")
    assert "Budget: 210 numbers, those of 3 pairs of an image and a representation (8 × 8 × 1 + 6 = 70 each)" in text
    assert to_markdown(*results_table(results)) in text
    assert to_markdown(*views_table(results)) in text
    assert "seeds 0, 1\n" in text


def test_the_report_defines_the_scores_as_the_results_do_and_else_those_of_older_files(workdir, results):
    report = workdir / "report" / "results.md"
    write_report(workdir)
    assert "accuracies in percent: a linear probe on the frozen features fitted with all training labels; a linear" in report.read_text()
    results["protocols"] = {name: {"columns": {name: name}, "definition": f"what {name} is"} for name in ("linear", "toy")}
    (workdir / "results.json").write_text(json.dumps(results))
    write_report(workdir)
    assert "accuracies in percent: what linear is; what toy is. Values" in report.read_text()


def test_without_matplotlib_the_rest_is_there_with_a_note(workdir, without_matplotlib):
    assert write_report(str(workdir)) == [NO_PLOTS]
    assert "pip install ssdd-jax[plots]" in NO_PLOTS
    assert check_links(workdir / "report") == PICTURES
    assert "Outer loss" not in (workdir / "report" / "results.md").read_text()


def test_writing_twice_gives_the_same_files(workdir):
    files = lambda: {file.name: file.read_bytes() for file in (workdir / "report").iterdir()}
    write_report(workdir)
    first = files()
    write_report(workdir)
    assert files() == first


def test_only_the_report_folder_is_written(workdir):
    outside = lambda: {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file() and file.parent.name != "report"}
    before = outside()
    write_report(workdir)
    assert outside() == before


def test_a_missing_distilled_set_costs_its_pictures_alone(workdir, without_matplotlib):
    shutil.rmtree(workdir / "distilled" / "ours")
    notes = write_report(workdir)
    assert notes[0] == NO_PLOTS
    assert len(notes) == 2
    assert notes[1].startswith("pictures of ours skipped: no distilled set at ")
    assert "\n" not in notes[1]
    assert check_links(workdir / "report") == {"krr_st-images.png"}
    assert "| ours | 12 |" in (workdir / "report" / "results.md").read_text()


def test_pictures_are_of_the_first_seed_that_is_there(workdir, without_matplotlib):
    shutil.rmtree(workdir / "distilled" / "ours" / "seed_0")
    # The real images are those next to seed 0.
    assert write_report(workdir) == [NO_PLOTS, NO_NEAREST.format(FILE)]
    text = (workdir / "report" / "results.md").read_text()
    assert "## ours, seed 1" in text
    assert "## krr_st, seed 0" in text


def test_a_set_without_normalization_is_not_drawn(workdir, without_matplotlib):
    file = workdir / "distilled" / "krr_st" / "seed_0" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["normalization"]
    file.write_text(json.dumps(manifest))
    file.with_name("SHA256SUMS").unlink()
    assert "no normalization" in write_report(workdir)[1]


def test_a_single_seed(workdir, results):
    results["rows"] = [row for row in results["rows"] if row["seed"] == 1]
    (workdir / "results.json").write_text(json.dumps(results))
    write_report(workdir)
    text = (workdir / "report" / "results.md").read_text()
    assert "; seed 1\n" in text
    assert "| ours | 12 | 3 | 36 | 200 (95.2%) | .100 | 77.0 | 60.0 | 2,000 | 13.0 |" in text


def test_no_metrics_no_curves(workdir):
    (workdir / "metrics.jsonl").unlink()
    assert write_report(workdir) == ["loss curves skipped: metrics.jsonl holds no outer losses of these methods"]
    assert check_links(workdir / "report") == PICTURES


def test_missing_or_broken_results_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json in .*, expected") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()
    (tmp_path / "results.json").write_text('{"name": ')
    with pytest.raises(InputError, match=r"results\.json is not a results file \(JSONDecodeError") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_curves_gather_seeds_from_any_grouping():
    rows = [{"method": "ours", "seed": 0}, {"method": "ours", "seed": 2}, {"method": "random", "seed": 0}]
    records = [
        {"stage": "teacher", "step": 50, "loss": 9.0},
        # An earlier run had other seeds, and a method that is gone.
        {"stage": "distill/ours/seeds_0_1", "step": 50, "seeds": [0, 1], "loss": [8.0, 7.0]},
        {"stage": "distill/gone/seeds_0", "step": 50, "seeds": [0], "loss": [1.0]},
        {"stage": "distill/ours/seeds_0", "step": 50, "loss": [3.0]},
        {"stage": "distill/ours/seeds_2", "step": 100, "loss": [5.0]},
        {"stage": "distill/ours/seeds_2", "step": 50, "seeds": [2], "loss": 4.0},
        {"stage": "distill/ours/seeds_0", "step": 100, "loss": [2.0]},
        # Steps that one seed alone has logged: a mean of one seed beside means of two would jump.
        {"stage": "distill/ours/seeds_2", "step": 150, "loss": [1.0]},
        {"stage": "distill/ours/seeds_0", "step": 200, "loss": [1.0]},
    ]
    curves = loss_curves(records, rows)
    assert list(curves) == ["ours"]
    steps, losses = curves["ours"]
    np.testing.assert_array_equal(steps, [50, 100])
    np.testing.assert_array_equal(losses, [[3.0, 4.0], [2.0, 5.0]])
