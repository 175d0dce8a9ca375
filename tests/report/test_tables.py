"""Numbers of the tables, computed by hand, and the forms in which they are printed."""

import json

import pytest
from rich.console import Console

from ssdd_jax.report import results_table, summarize, to_markdown, to_rich, views_table


def columns(header, rows):
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_summary_holds_means_and_sample_deviations_in_order_of_appearance(results):
    ours, krr_st = summarize(results["rows"])
    assert (ours["method"], krr_st["method"]) == ("ours", "krr_st")
    # Two values a and b: mean (a + b) / 2, sample deviation |a - b| / sqrt(2).
    assert ours["repr_error"] == {"mean": pytest.approx(0.15), "std": pytest.approx(0.1 / 2**0.5)}
    assert ours["probe_accuracy"] == {"mean": pytest.approx(0.76), "std": pytest.approx(0.02 / 2**0.5)}
    assert ours["probe_accuracy_low"] == {"mean": pytest.approx(0.55), "std": pytest.approx(0.1 / 2**0.5)}
    assert ours["seconds"] == pytest.approx(11.5)
    assert (ours["num_images"], ours["num_views"], ours["stored_scalars"], ours["steps"]) == (12, 3, 200, 2000)
    assert krr_st["repr_error"] == {"mean": 1.25, "std": 0.0}


def test_summary_of_interleaved_seeds_is_the_same(results):
    assert summarize([results["rows"][i] for i in (0, 2, 1, 3)]) == summarize(results["rows"])


def test_summary_refuses_seeds_of_different_size(results):
    results["rows"][1]["stored_scalars"] = 201
    with pytest.raises(ValueError, match=r"ours has stored_scalars \[200, 201\]"):
        summarize(results["rows"])


def test_results_table(results):
    header, rows = results_table(results)
    assert [row[0] for row in rows] == ["no pretraining", "teacher's network, untrained", "teacher", "ours", "krr_st"]
    table = columns(header, rows)
    assert list(table["ours"].values()) == [
        "ours",
        "12",
        "3",
        "36",
        "200 (95.2%)",
        ".150 ± .071",
        "76.0 ± 1.4",
        "55.0 ± 7.1",
        "2,000",
        "11.5",
    ]
    assert table["krr_st"]["repr_error"] == "1.250 ± .000"
    assert table["krr_st"]["numbers stored"] == "210 (100.0%)"
    assert table["krr_st"]["seconds"] == "1,235"
    assert table["no pretraining"]["probe"] == "45.0 ± 7.1"
    assert table["no pretraining"]["probe, few labels"] == "20.0 ± 0.0"
    assert table["teacher"]["probe"] == "90.0 ± 0.0"
    assert table["teacher"]["repr_error"] == table["teacher"]["images"] == "–"


def test_a_single_seed_has_no_deviation(results):
    results["rows"] = [row for row in results["rows"] if row["seed"] == 0]
    results["references"] = {"none": {"probe_accuracy": [0.4], "probe_accuracy_low": [0.2]}}
    summary = summarize(results["rows"])
    assert summary[0]["probe_accuracy"] == {"mean": 0.75, "std": None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    table = columns(*results_table(results))
    assert (table["ours"]["probe"], table["ours"]["repr_error"], table["no pretraining"]["probe"]) == ("75.0", ".200", "40.0")


def test_views_table(results):
    header, rows = views_table(results)
    assert header == ["view", "teacher's shift", "ours"]
    assert rows == [["rot90", "1.30", "network, R² .70"], ["dim", ".02", "shared"]]


def test_views_table_of_two_methods_marks_what_one_lacks(results):
    row = next(row for row in results["rows"] if row["method"] == "krr_st")
    row |= {"views": ["identity", "hflip"], "target_kinds": ["stored", "stored"], "num_views": 2}
    header, rows = views_table(results)
    assert header[2:] == ["ours", "krr_st"]
    assert rows == [["rot90", "1.30", "network, R² .70", "–"], ["dim", ".02", "shared", "–"], ["hflip", "–", "–", "stored"]]


def test_views_table_shows_a_negative_r2(results):
    for row in results["rows"][:2]:
        row["approximation"]["rot90"] = -0.25
    assert views_table(results)[1][0][2] == "network, R² -.25"


def test_no_views_table_without_views(results):
    results["rows"] = [row for row in results["rows"] if row["method"] == "krr_st"]
    assert views_table(results) is None


def test_markdown_escapes_what_would_end_a_cell():
    assert to_markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n|:--|--:|\n| x\\|y | 1 |"


def printed(table, width):
    console = Console(width=width, soft_wrap=True, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 200])
def test_the_terminal_table_breaks_no_cell_at_any_width(results, width):
    header, rows = results_table(results)
    lines = printed(to_rich(header, rows, title="toy"), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in rows:
        assert all(cell in text for cell in row)


def test_a_wide_terminal_shows_one_line_a_method(results):
    header, rows = results_table(results)
    lines = printed(to_rich(header, rows), 200)
    assert len([line for line in lines if line.startswith("ours")]) == 1
    assert len([line for line in printed(to_rich(header, rows), 80) if line.startswith("ours")]) == 2


def test_names_are_no_markup():
    assert "[bold]" in "\n".join(printed(to_rich(["method", "probe"], [["[bold]", "1"]]), 80))
