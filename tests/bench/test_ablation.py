import json

import pytest

from experiments import ablation
from ssdd_jax.cli import load_config
from ssdd_jax.settings.parse import to_spec


@pytest.mark.parametrize("question", list(ablation.QUESTIONS))
def test_every_line_of_a_question_is_a_method_of_a_config(question, tmp_path):
    _, lines = ablation.QUESTIONS[question]
    names = [ablation.method_of(name) for name in lines]
    assert len(set(names)) == len(names)
    for key, together in ablation.groups(lines).items():
        methods = {ablation.method_of(name): [line.like, dict(line.changes)] for name, line in together.items()}
        run = dict(next(iter(together.values())).run)
        settings = {"base": "arrays:paper", "source": "arrays:mine.npz", "split": "validation", "seeds": [0, 1]}
        settings |= {"run": run, "methods": methods}
        of = {}
        for is_smoke in (False, True):
            (tmp_path / f"{key}.json").write_text(json.dumps({**settings, "smoke": is_smoke}))
            of[is_smoke] = to_spec(load_config(f"experiments/ablation_config.py:{tmp_path / key}.json"))
        spec = of[False]
        assert max(method.steps for method in of[True].methods.values()) <= 6
        assert set(spec.methods) == set(methods)
        assert (spec.evaluation.split, spec.seeds) == ("validation", (0, 1))
        assert spec.pool.members_per_step == run.get("pool.members_per_step", 1)


def test_lines_with_other_settings_of_the_run_are_other_runs():
    _, lines = ablation.QUESTIONS["members"]
    assert [list(together) for together in ablation.groups(lines).values()] == [["1"], ["2"], ["4"]]
    assert len(ablation.groups(ablation.QUESTIONS["networks"][1])) == 1


def test_differences_are_paired_and_have_students_interval():
    # The differences 1, 2, 3 have mean 2 and standard deviation 1; t of 2 degrees of freedom is 4.3027.
    assert ablation.difference([0.51, 0.62, 0.73], [0.50, 0.60, 0.70], "linear") == "+2.0 ± 2.5"
    assert ablation.difference([0.25], [0.5], "repr_error") == "-0.250"
    row = lambda seed, error, student="convnet": {"seed": seed, "repr_error": error, "student": student, "num_images": 5, "num_views": 2}
    header, rows = ablation.table({"none": [row(0, 0.5), row(1, 0.7)], "flip": [row(1, 0.6), row(0, 0.4)], "gone": []})
    assert header == ["", "images x views", "repr_error"]
    assert rows[0] == ["none", "5 x 2", "0.600 ± 0.141"]
    assert rows[1] == ["flip", "5 x 2", "0.500 ± 0.141 (-0.100 ± 0.000)"]
    assert rows[2] == ["gone", "–", "–"]
    _, rows = ablation.table({"none": [row(0, 0.5), row(0, 0.9, "vit")], "flip": [row(0, 0.4), row(0, 0.7, "vit")]})
    assert [line[0] for line in rows] == ["none; convnet", "flip; convnet", "none; vit", "flip; vit"]
    assert rows[3][2] == "0.700 (-0.200)"
