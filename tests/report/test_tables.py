"""Numbers of the tables, computed by hand, and the forms in which they are printed."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from ssdd_jax.report import results_table, results_tables, score_columns, summarize, to_markdown, to_rich, views_table
from ssdd_jax.report.tables import score_label, scores_in


def columns(header, rows):
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_summary_holds_means_and_sample_deviations_in_order_of_appearance(results):
    ours, krr_st, *controls = summarize(results["rows"])
    assert (ours["method"], krr_st["method"]) == ("ours", "krr_st")
    assert [entry["method"] for entry in controls] == ["teacher_init", "teacher", "none"]
    assert controls[-1]["student"] == "convnet"
    assert not {"num_images", "seconds", "repr_error"} & set(controls[-1])
    # Two values a and b: mean (a + b) / 2, sample deviation |a - b| / sqrt(2).
    assert ours["repr_error"] == {"mean": pytest.approx(0.15), "std": pytest.approx(0.1 / 2**0.5)}
    assert ours["linear"] == {"mean": pytest.approx(0.76), "std": pytest.approx(0.02 / 2**0.5)}
    assert ours["few_1"] == {"mean": pytest.approx(0.55), "std": pytest.approx(0.1 / 2**0.5)}
    assert ours["seconds"] == pytest.approx(11.5)
    assert (ours["num_images"], ours["num_views"], ours["stored_scalars"], ours["steps"]) == (12, 3, 200, 2000)
    assert krr_st["repr_error"] == {"mean": 1.25, "std": 0.0}


def test_summary_of_interleaved_seeds_is_the_same(results):
    assert summarize([results["rows"][i] for i in (0, 2, 1, 3)]) == summarize(results["rows"][:4])


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
    assert table["no pretraining"]["linear probe"] == "45.0 ± 7.1"
    assert table["no pretraining"]["1 % of labels"] == "20.0 ± 0.0"
    assert table["teacher"]["linear probe"] == "90.0 ± 0.0"
    assert table["teacher"]["repr_error"] == table["teacher"]["images"] == "–"


def test_a_method_that_does_not_exist_at_a_budget_has_an_empty_line(results):
    results["absent"] = {"dsa": "the budget holds no image of each class", "ours": "of other settings"}
    header, rows = results_table(results)
    assert rows[-1] == ["dsa", *["–"] * (len(header) - 1)]
    assert [row[0] for row in rows].count("ours") == 1


def test_a_single_seed_has_no_deviation(results):
    results["rows"] = [row for row in results["rows"] if row["seed"] == 0]
    summary = summarize(results["rows"])
    assert summary[0]["linear"] == {"mean": 0.75, "std": None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    table = columns(*results_table(results))
    assert (table["ours"]["linear probe"], table["ours"]["repr_error"], table["no pretraining"]["linear probe"]) == ("75.0", ".200", "40.0")


def test_scores_come_in_one_order_and_only_those_that_there_are(results):
    assert [score_label(score) for score in scores_in(results["rows"])] == ["repr_error", "linear probe", "1 % of labels"]
    row = {"method": "a", "finetune": 1.0, "knn": 1.0, "few_10": 1.0, "few_2.5": 1.0}
    assert scores_in([row]) == ["few_2.5", "few_10", "knn", "finetune"]


def test_other_scores_come_last_under_the_title_that_the_results_give_them(results):
    results["protocols"] = {
        "toy": {"columns": {"toy": "toy score", "never": "never"}, "definition": "a toy"},
        "linear": {"columns": {"linear": "probe of all"}, "definition": "a probe"},
    }
    for row in results["rows"]:
        row |= {"toy": 0.25, "unnamed": 0.5}
    assert score_columns(results) == {"toy": "toy score", "never": "never", "linear": "probe of all"}
    header, rows = results_table(results)
    assert header[5:9] == ["repr_error", "probe of all", "1 % of labels", "toy score"]
    assert columns(header, rows)["ours"]["toy score"] == "25.0 ± 0.0"
    assert results_tables(cross(results))["Students: toy score"][1][1] == ["ours", "25.0 ± 0.0", "25.0 ± 0.0"]


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("experiments/results/*.json")), ids=lambda file: file.stem)
def test_published_results_are_read_whatever_version_wrote_them(file):
    results = json.loads(file.read_text())
    header, rows = results_table(results)
    # What students are trained on: labels, or representations.
    of_labels = file.stem in ("fashion_mnist_labels", "fashion_mnist_dsa")
    assert ("accuracy" if of_labels else "repr_error") in header
    assert len(rows) == len({row["method"] for row in results["rows"]})


def cross(results):
    """The rows again with a second student, and on a second dataset."""
    sets = [row for row in results["rows"] if row["student"]]
    other = [{**row, "student": "vit", "linear": row["linear"] / 2} for row in sets]
    further = [{key: value for key, value in row.items() if key != "repr_error"} | {"dataset": "elsewhere", "linear": 0.1} for row in sets]
    results["rows"] += other + further
    return results


def test_a_second_student_and_a_second_dataset_make_a_table_a_score(results):
    assert list(results_tables(results)) == ["Results"]
    main = results_table(results)
    tables = results_tables(cross(results))
    assert tables["Results, convnet"] == main
    kinds = {title.partition(":")[0] for title in tables}
    assert kinds == {"Results, convnet", "Students", "Datasets"}
    header, rows = tables["Students: linear probe"]
    assert header == ["method", "convnet", "vit"]
    assert rows == [
        ["no pretraining", "45.0 ± 7.1", "22.5 ± 3.5"],
        ["ours", "76.0 ± 1.4", "38.0 ± 0.7"],
        ["krr_st", "60.0 ± 0.0", "30.0 ± 0.0"],
    ]
    further = {row[0]: row[1:] for row in tables["Datasets: linear probe"][1]}
    assert further["ours"] == ["76.0 ± 1.4", "10.0 ± 0.0"]
    # The teacher has no student, but it is read on every dataset.
    assert further["teacher"] == ["90.0 ± 0.0", "–"]
    # The error is of the distilled set's own dataset alone.
    assert tables["Students: repr_error"][0] == ["method", "convnet", "vit"]
    assert tables["Datasets: repr_error"][0] == ["method", "toy"]


def test_a_student_that_diverged_is_counted_and_not_averaged(results):
    ours = [row for row in results["rows"] if row["method"] == "ours"]
    for score in ("linear", "few_1", "repr_error"):
        del ours[0][score]
    ours[0]["failed"] = "loss is [nan]"
    table = columns(*results_table(results))
    assert table["ours"]["linear probe"] == "77.0 (1 failed)"
    assert table["krr_st"]["linear probe"] == "60.0 ± 0.0"
    for score in ("linear", "few_1", "repr_error"):
        del ours[1][score]
    ours[1]["failed"] = "loss is [nan]"
    assert columns(*results_table(results))["ours"]["linear probe"] == "– (2 failed)"


def test_sets_without_sizes_and_without_a_budget_show_what_they_have(results):
    results["budget"] = None
    foreign = {"method": "foreign-0", "student": "convnet", "dataset": "toy", "seed": 0, "num_images": 9, "linear": 0.5}
    results["rows"] = [row for row in results["rows"] if row["method"] == "ours"] + [foreign]
    table = columns(*results_table(results))
    assert table["ours"]["numbers stored"] == "200"
    shown = [table["foreign-0"][column] for column in ("images", "pairs", "numbers stored", "linear probe", "seconds")]
    assert shown == ["9", "–", "–", "50.0", "–"]


def test_views_table(results):
    header, rows = views_table(results)
    assert header == ["view", "teacher's shift", "ours"]
    assert rows == [["rot90", "1.30", "network, R² .70"], ["dim", ".02", "shared"]]


def test_views_table_of_two_methods_marks_what_one_lacks(results):
    row = next(row for row in results["rows"] if row["method"] == "krr_st")
    row |= {"views": ["identity", "hflip"], "view_targets": ["stored", "stored"], "num_views": 2}
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
