"""The tables of the paper, from rows that are made up."""

import json
import re

import numpy as np
import pytest

from experiments.paper import plans, tables
from experiments.paper.__main__ import gather
from experiments.paper.render import as_html, as_latex, as_markdown, budgets_picture
from experiments.runs import key_of, share
from ssdd_jax.cli import load_config
from ssdd_jax.settings.evaluation import LABEL_RECIPES
from ssdd_jax.settings.parse import to_spec

CONFIG = "experiments/paper/config.py"


def scale(data="arrays:mine.npz", name="cpu", targets=()):
    return plans.scale_of(name, data, 0, (), targets, False)


def row(method, linear, seed=0, num_pairs=50, student="convnet", dataset="mine", **more):
    own = {"num_pairs": num_pairs, "own": dataset == "mine", "num_images": 5, "num_views": 1}
    return {"method": method, "student": student, "dataset": dataset, "seed": seed, "linear": linear, **own, **more}


def test_the_paper_has_a_run_for_every_budget_and_every_table():
    paper = scale("cifar100", "paper")
    runs = plans.all_runs(plans.TABLES, paper, range(3))
    assert {run.num_pairs for run in runs} == {25, 50, 100, 1000, 5000}
    assert [run.seeds for run in runs] == sorted((run.seeds for run in runs), key=len)
    assert len(set(runs)) == len(runs)
    assert paper.targets == ("cifar10", "cub200", "dogs")
    assert paper.base(25) == ("cifar100:n25", "")
    assert paper.base(100) == ("cifar100", "")
    assert scale("folder:photos", "paper").base(1000) == ("cifar100:n1000", "folder:photos")
    assert [scale().base(n) for n in (10, 50)] == [("arrays:paper", "arrays:mine.npz"), ("arrays:n50", "arrays:mine.npz")]


def test_a_skipped_row_is_in_no_run():
    runs = plans.all_runs(plans.TABLES, scale(), range(1), plans.OF_LABELS)
    assert {name for run in runs for name in run.methods} == set(plans.ROWS) - set(plans.OF_LABELS)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("table", plans.TABLES)
def test_every_run_of_a_table_is_a_config_that_can_be_parsed(table, smoke, tmp_path):
    of = plans.scale_of("cpu", "arrays:mine.npz", 0, (), ("digits", "arrays:other.npz"), smoke)
    for number, run in enumerate(plans.runs_of(table, of)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(run.settings(of, 32, 3)))
        spec = to_spec(load_config(f"{CONFIG}:{file}"))
        assert spec.num_pairs == run.num_pairs
        assert spec.chosen_methods() == run.methods
        regressions = [method for method in spec.methods.values() if method.kind == "regression"]
        assert all(len(method.view_targets) in (1, len(method.views)) for method in regressions)
        assert spec.data.source == "arrays:mine.npz"
        assert smoke or spec.evaluation.recipes["labels"] == LABEL_RECIPES["dc"]
        assert set(spec.evaluation.datasets) == ({"digits", "other"} if run.targets else set())
        assert spec.evaluation.datasets["digits"].size == 32 if run.targets else True


def test_scores_have_their_spread_and_the_papers_numbers_only_on_its_data():
    rows = [row("random", 0.4), row("random", 0.42, seed=1), row("ours", 0.5), row("ours", 0.52, seed=1), row("krr_st", 0.45)]
    (table,) = tables.cross_architecture(rows, scale(), {("dsa", 50): "the budget holds no image of each class"})
    assert table.header == ["method", "convnet"]
    assert table.rows == [["random", "41.0 ± 1.4"], ["dsa", "–"], ["krr_st", "45.0"], ["ours", "51.0 ± 1.4"]]
    assert "Order of the paper's rows: 3 of 3 pairs are as on CIFAR-100." in table.notes
    assert "dsa: the budget holds no image of each class" in table.notes
    rows = [row("ours", 0.5, num_pairs=100)]
    (table,) = tables.cross_architecture(rows, scale("cifar100", "paper"), {})
    assert table.rows == [["ours", "50.0 [52.41]"]]


def test_an_order_that_differs_is_counted():
    assert tables.agreement({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.0}) == (2, 3)


@pytest.mark.parametrize(
    ("goal", "lower", "expected"),
    [(55.0, False, 10**1.5), (50.0, False, 10.0), (40.0, False, 10.0), (61.0, False, None), (48.0, True, None)],
)
def test_savings_are_interpolated_between_measured_points_and_never_beyond(goal, lower, expected):
    found = tables.saving([(10, 50.0), (100, 60.0)], goal, lower)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_saving_is_that_of_the_least_budget():
    rows = [row("ours", 0.55, num_pairs=10), row("krr_st", 0.5, num_pairs=10), row("krr_st", 0.6, num_pairs=1000)]
    *_, saved = tables.budgets(rows, scale(), {})
    assert saved.rows == [["ours, N = 10", "Linear evaluation", "krr_st", "10.0 times"]]
    rows[0]["linear"] = 0.7
    assert tables.budgets(rows, scale(), {})[-1].rows[0][3] == "more than 100 times"


def test_the_row_beyond_the_paper_is_in_its_tables_and_its_saving_is_counted():
    ten, thousand = {"num_pairs": 10}, {"num_pairs": 1000}
    rows = [row("auto", 0.58, **ten), row("ours", 0.5, **ten), row("krr_st", 0.5, **ten), row("krr_st", 0.6, **thousand)]
    assert "auto" in [line[0] for line in tables.cross_architecture([row("auto", 0.58)], scale(), {})[0].rows]
    *_, saved = tables.budgets(rows, scale(), {})
    assert [line[0] for line in saved.rows] == ["ours, N = 10", "auto, N = 10"]
    assert saved.rows[1] == ["auto, N = 10", "Linear evaluation", "krr_st", "39.8 times"]
    # With as much storage as there is of the others, nothing can be said.
    assert tables.budgets([{**row, "num_pairs": 10} for row in rows[:3]], scale(), {})[-1].title != "Storage saved"


def test_the_ablation_has_a_line_for_every_part():
    rows = [row("krr_st", 0.4, repr_error=0.5), row("ours", 0.5, repr_error=0.25), row("ours", 0.5, student="vit", repr_error=0.9)]
    (table,) = tables.ablation(rows, scale(), {})
    assert table.rows == [["krr_st", "5 x 1", "40.0", "0.500"], ["ours", "5 x 1", "50.0", "0.250"]]


def test_tables_read_as_markdown_html_and_latex():
    table = tables.Table("Students & more", ["method", "a_b"], [["ours", "50.0 ± 1.0"], ["x<y", "1 %"]], ["A note."])
    assert "| ours | 50.0 ± 1.0 |" in as_markdown([table])
    latex = as_latex([table])
    assert r"ours & 50.0 $\pm$ 1.0 \\" in latex
    assert r"Students \& more. A note." in latex
    assert r"a\_b" in latex


def test_the_page_has_the_look_of_a_report():
    pytest.importorskip("jinja2")
    rows = [row("random", 0.4), row("ours", 0.5), row("none", 0.9)]
    page = as_html(tables.cross_architecture(rows, scale(), {}), {"ours.png": "its <images>"})
    assert "<strong>50.0</strong>" in page
    assert page.count("<strong>") == 1
    assert '<img class="picture" src="ours.png" alt="its &lt;images&gt;">' in page
    assert not re.search(r"https?:", page)


def test_budgets_are_drawn_from_two_points_on():
    pytest.importorskip("matplotlib")
    rows = [row("ours", 0.5, num_pairs=10)]
    assert budgets_picture(rows, "linear") is None
    assert budgets_picture([*rows, row("ours", 0.6, num_pairs=20)], "linear") is not None


def test_rows_of_present_settings_replace_earlier_ones(tmp_path):
    results = {
        "dataset": {"name": "mine"},
        "absent": {},
        "earlier": [row("ours", 0.1), row("basis", 0.2)],
        "rows": [row("ours", 0.5)],
    }
    (tmp_path / "n10").mkdir()
    (tmp_path / "n10" / "results.json").write_text(json.dumps(results))
    # The results of the last call, of other rows, say nothing of those that an earlier one missed.
    (tmp_path / "absent.json").write_text(json.dumps({"10": {"dsa": "why"}}))
    rows, absent = gather(tmp_path)
    assert {found["method"]: found["linear"] for found in rows} == {"ours": 0.5, "basis": 0.2}
    assert {found["num_pairs"] for found in rows} == {10}
    assert absent == {("dsa", 10): "why"}


def test_budgets_share_the_teacher_and_its_representations(tmp_path):
    old = tmp_path / "n10" / "checkpoints"
    for folder in ("teacher-abc", "representations-abc", "ours-xyz-seeds_0"):
        (old / folder).mkdir(parents=True)
        np.save(old / folder / "a.npy", np.zeros(3))
    (old / "experts-123.npy").write_bytes(b"")
    (old / "experts-456.partial").write_bytes(b"")
    (old / "representations-abc" / "b.partial").write_bytes(b"")
    share([tmp_path / "n10"], tmp_path / "n20")
    shared = tmp_path / "n20" / "checkpoints"
    assert sorted(file.name for file in shared.iterdir()) == ["experts-123.npy", "representations-abc", "teacher-abc"]
    assert [file.name for file in (shared / "representations-abc").iterdir()] == ["a.npy"]
    assert key_of({"a": 1}) == key_of({"a": 1}) != key_of({"a": 2})
