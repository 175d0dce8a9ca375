"""The page: what it says without a browser, and what is left out."""

import json
import re
import sys

import numpy as np
import pytest

from ssdd_jax.errors import InputError
from ssdd_jax.report import nearest, read_runs, write_comparison, write_report
from ssdd_jax.report.charts import MAX_POINTS, budget_chart, loss_chart, style
from ssdd_jax.report.compare import comparison_table
from ssdd_jax.report.contents import NO_NEAREST, NO_PAGE, page_of
from ssdd_jax.report.gallery import images_shown
from ssdd_jax.report.page import Table, text_table
from ssdd_jax.report.run import read_run
from ssdd_jax.report.tables import Cell
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.evaluation import PublishedSpec

needs_page = pytest.mark.usefixtures("page_packages")


@pytest.fixture
def page_packages():
    pytest.importorskip("jinja2")
    pytest.importorskip("vl_convert")


def bold(table: Table):
    """Return what is bold by column: the method and its cell."""
    found = {}
    for row in table.rows:
        for column in sorted(row.best):
            found.setdefault(table.header[column], []).append((str(row.cells[0]), str(row.cells[column])))
    return found


def test_the_best_of_every_score_is_bold_with_its_spread_and_controls_do_not_compete(workdir):
    (table,) = page_of([read_run(workdir)]).tables
    # The teacher's 90 % are not those of a set.
    assert bold(table) == {
        "repr_error": [("ours", ".150 ± .071")],
        "linear probe": [("ours", "76.0 ± 1.4")],
        "1 % of labels": [("ours", "55.0 ± 7.1")],
    }


def test_the_best_is_that_of_its_student_and_its_budget(runs, results):
    file = runs[1] / "results.json"
    larger = json.loads(file.read_text())
    larger["rows"] = [row | {"student": row["student"] and "vit"} for row in larger["rows"]] + larger["rows"]
    file.write_text(json.dumps(larger))
    (table, about) = page_of(read_runs(runs)).tables
    assert table.header[:4] == ["run", "method", "student", "budget N"]
    column = table.header.index("linear probe")
    best = [[str(cell) for cell in row.cells[:4]] for row in table.rows if column in row.best]
    assert best == [["small", "ours", "convnet", "3"], ["large", "ours", "vit", "6"], ["large", "ours", "convnet", "6"]]
    assert [str(row.cells[0]) for row in about.rows] == ["small", "large"]


def test_equal_scores_are_both_bold_and_one_alone_is_not():
    cell = lambda value: Cell(f"{value:.1f}", value, better=1)
    table = text_table("t", ["method", "a", "b"], [["x", cell(2.0), cell(1.0)], ["y", cell(2.0), "–"], ["z", cell(1.0), "–"]])
    assert bold(table) == {"a": [("x", "2.0"), ("y", "2.0")]}


@pytest.mark.parametrize(("num_pairs", "shown"), [(3, "76.0 ± 1.4 [52.40]"), (4, "76.0 ± 1.4")])
def test_published_numbers_stand_in_brackets_at_their_budget_alone(num_pairs, shown, workdir, results):
    spec = PublishedSpec("Yu et al., 2025", "toy", num_pairs, "linear", ("vit", "convnet"), (1.0, 52.4))
    results["published"] = {"ours": json_ready(spec)}
    (workdir / "results.json").write_text(json.dumps(results))
    (table,) = page_of([read_run(workdir)]).tables
    cells = {str(row.cells[0]): str(row.cells[table.header.index("linear probe")]) for row in table.rows}
    assert (cells["ours"], cells["krr_st"]) == (shown, "60.0 ± 0.0")
    assert ("In brackets: Yu et al., 2025." in table.notes) == ("[" in shown)


def test_what_a_run_is_called_stays_text(workdir, results, page_packages):
    results["name"] = "</script><script>alert(1)</script>"
    (workdir / "results.json").write_text(json.dumps(results))
    assert write_report(workdir) == []
    page = (workdir / "report" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(("module", "name"), [("jinja2", "Jinja2"), ("vl_convert", "vl-convert-python")])
def test_without_its_packages_the_page_alone_is_missing(module, name, workdir, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip(module)
    monkeypatch.setitem(sys.modules, module, None)
    # An earlier one does not stay, and what draws the curves is not made yet.
    (workdir / "report" / "index.html").write_text("of earlier results")
    monkeypatch.setenv("SSDD_JAX_CACHE", str(tmp_path / "cache"))
    assert write_report(workdir) == [NO_PAGE.format(name)]
    assert "pip install ssdd-jax[plots]" in NO_PAGE
    assert not (workdir / "report" / "index.html").exists()
    assert (workdir / "report" / "loss.png").is_file()


@needs_page
def test_pictures_are_there_without_the_real_images_that_a_run_has_not_written(workdir):
    (workdir / nearest.FILE).unlink()
    assert NO_NEAREST.format(nearest.FILE) in write_report(workdir)
    page = (workdir / "report" / "index.html").read_text()
    assert page.count('alt="ours, distilled image') == 12
    assert "training image" not in page


@needs_page
def test_real_images_next_to_an_earlier_set_are_not_shown(workdir, make_set):
    write_report(workdir)
    file = workdir / "report" / "index.html"
    assert file.read_text().count("among the nearest") == (12 + 3) * nearest.COUNT
    manifest = json.loads((workdir / "distilled" / "ours" / "seed_0" / "manifest.json").read_text())
    found = nearest.read_nearest(workdir)
    assert found["ours"].digest == manifest["sha256"]
    nearest.write_nearest(workdir, {"krr_st": found["krr_st"], "ours": nearest.Nearest(*list(vars(found["ours"]).values())[:3], "other")})
    write_report(workdir)
    assert file.read_text().count("among the nearest") == 3 * nearest.COUNT


def test_the_nearest_rows_are_those_of_brute_force_whatever_the_chunks(monkeypatch):
    random = np.random.RandomState(0)
    points, reprs = random.normal(size=(4, 6)), random.normal(1, 2, (50, 6))
    # Equal rows: the earlier one comes first.
    reprs[20] = reprs[7] = points[2]
    found = nearest.nearest_rows(points, reprs, 3)
    distances = ((points[:, None] - reprs[None]) ** 2).mean(-1) / np.mean((reprs - reprs.mean(0)) ** 2)
    expected = np.argsort(distances, 1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(found[1], np.take_along_axis(distances, expected, 1), atol=1e-5)
    assert found[0][2, :2].tolist() == [7, 20]
    monkeypatch.setattr(nearest, "CHUNK", 7)
    np.testing.assert_array_equal(nearest.nearest_rows(points, reprs, 3)[0], expected)


def test_a_damaged_file_of_real_images_is_as_none(workdir):
    file = workdir / nearest.FILE
    assert set(nearest.read_nearest(workdir)) == {"ours", "krr_st"}
    file.write_bytes(file.read_bytes()[:-20])
    assert nearest.read_nearest(workdir) == {}


def test_the_page_stays_small_whatever_the_images():
    assert images_shown(100, (28, 28, 1), 4) == 100
    assert images_shown(1000, (64, 64, 3), 4) < 20
    assert images_shown(1000, (224, 224, 3), 4, num_sets=20) == images_shown(6, (224, 224, 3), 4) == 6


def test_curves_are_thinned_to_what_can_be_seen_with_both_their_ends():
    steps = np.arange(1, 10_001)
    values = loss_chart({"a": {"ours": (steps, np.ones((10_000, 2)))}}, {"ours": style(0)})["data"]["values"]
    assert len(values) == MAX_POINTS
    assert (values[0]["step"], values[-1]["step"]) == (1, 10_000)


@pytest.mark.parametrize(("budgets", "by_run"), [((10, 20), False), ((10, 10), True)])
def test_a_line_goes_from_budget_to_budget_and_not_between_two_runs_of_one(budgets, by_run):
    point = {"method": "ours", "mean": 1.0, "low": 1.0, "high": 1.0}
    chart = budget_chart([point | {"run": f"{i}", "pairs": n} for i, n in enumerate(budgets)], "probe", {"ours": style(0)})
    assert ("detail" in chart["layer"][1]["encoding"]) == by_run


def test_runs_are_compared_in_one_table(runs):
    header, rows = comparison_table(read_runs(runs))
    assert header[:3] == ["run", "method", "budget N"]
    named = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    assert named["small", "ours"]["numbers stored"] == "200 (95.2%)"
    assert named["large", "ours"]["numbers stored"] == "200 (47.6%)"
    assert len(rows) == 10


@needs_page
def test_other_data_and_other_splits_are_said(runs, tmp_path):
    assert write_comparison(read_runs(runs), tmp_path / "same") == []
    file = runs[1] / "results.json"
    results = json.loads(file.read_text())
    results["dataset"] |= {"fingerprint": "e" * 64, "split": "validation"}
    file.write_text(json.dumps(results))
    notes = write_comparison(read_runs(runs), tmp_path / "other")
    assert notes == [
        "The runs are of different datasets, whose scores do not compare: small of toy ffffff, large of toy eeeeee",
        "The runs are of different splits, whose scores do not compare: small of test, large of validation",
    ]
    for name in ("results.md", "index.html"):
        assert all(note in (tmp_path / "other" / name).read_text() for note in notes)
    # No curve goes from one dataset to another.
    assert "Scores over the budget" in (tmp_path / "same" / "index.html").read_text()
    assert "Scores over the budget" not in (tmp_path / "other" / "index.html").read_text()


def test_runs_of_one_name_are_told_apart_by_their_paths(runs):
    again = runs[0].parent / "elsewhere" / "large"
    again.parent.mkdir()
    runs[1].rename(again)
    runs[0].rename(runs[1])
    assert [run.label for run in read_runs([runs[1], again])] == [str(runs[1]), str(again)]


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
    cases = {
        (runs[0],): "a comparison needs two runs or more, one is given",
        (runs[0], runs[0] / ".." / "small"): "small is given twice; give each run once",
        (runs[0], tmp_path / "none"): "none: no such folder",
        (runs[0], tmp_path): None,
    }
    (tmp_path / "results.json").unlink()
    for paths, message in cases.items():
        with pytest.raises(InputError, match=re.escape(message or "no results.json in")) as caught:
            read_runs(paths)
        assert "\n" not in str(caught.value)
