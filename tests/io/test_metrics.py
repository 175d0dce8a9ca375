from ssdd_jax.io.metrics import Metrics


def test_a_stage_that_goes_on_drops_what_it_wrote_beyond_its_start(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for stage in ("teacher", "distill/ours"):
        for step in (10, 20, 30):
            metrics.write(stage, step, {"loss": float(step)})
    metrics.begin("distill/ours", 20)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [
        ("teacher", 10),
        ("teacher", 20),
        ("teacher", 30),
        ("distill/ours", 10),
        ("distill/ours", 20),
    ]


def test_a_last_line_that_was_cut_off_is_left_out_and_the_next_one_is_whole(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write("teacher", 10, {"loss": 1.0})
    with metrics.path.open("a") as file:
        file.write('{"stage": "teacher", "st')
    assert len(metrics.read()) == 1
    metrics.begin("teacher", 10)
    metrics.write("teacher", 20, {"loss": 2.0})
    assert [r["step"] for r in metrics.read()] == [10, 20]
