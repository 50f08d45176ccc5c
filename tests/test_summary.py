"""What a stage's summary tells of its metrics: last, best, selected."""

import pytest

from jaxrec import experiment

NAN = float("nan")


def test_best_is_never_chosen_by_what_tests():
    names = ("valid/ndcg@10", "test/ndcg@10", "users/reward", "eval/return", "train/x")
    lines = [
        {"step": s, "wall": 1.0} | dict.fromkeys(names, v)
        for s, v in [(1, 5.0), (2, 3.0)]
    ]
    found = experiment.metrics_summary(lines, "valid/ndcg@10")
    assert found["best"] == {"valid/ndcg@10": 5.0, "eval/return": 5.0}
    assert found["last"] == dict.fromkeys(names, 3.0)
    assert found["selected"] == {"step": 1} | dict.fromkeys(names, 5.0)


@pytest.mark.parametrize(
    "name,best",
    [
        ("valid/ndcg@10", 4.0),
        ("valid/gini@10", 1.0),
        ("valid/repetitiveness@5", 1.0),
        ("valid/loss", 1.0),
        ("valid/coverage@10", 4.0),
    ],
)
def test_what_should_fall_is_best_at_its_least(name, best):
    lines = [{"step": s, "wall": 0.0, name: v} for s, v in enumerate((2.0, 1.0, 4.0))]
    found = experiment.metrics_summary(lines, name)
    assert found["best"] == {name: best} and found["selected"][name] == best


@pytest.mark.parametrize("name", ["valid/ndcg@10", "valid/loss"])
def test_no_number_is_never_best(name):
    def lines(*values):
        return [
            {"step": s, "wall": 0.0, name: v, "test/x": [s + 0.5] * 2}
            for s, v in enumerate(values)
        ]

    # Seed 0 diverges before, seed 1 after what it measured; then seed 1 at once.
    found = experiment.metrics_summary(lines([NAN, 2.0], [3.0, None]), name)
    assert found["best"] == {name: [3.0, 2.0]}
    assert found["selected"] == {"step": [1, 0], name: [3.0, 2.0], "test/x": [1.5, 0.5]}
    found = experiment.metrics_summary(lines([1.0, None], [1.0, None]), name)
    assert found["best"] == {name: [1.0, None]}
    assert found["selected"] == {
        "step": [0, None],
        name: [1.0, None],
        "test/x": [0.5, None],
    }


def test_a_metric_to_select_by_that_was_never_measured_is_told(capsys):
    lines = [{"step": 1, "wall": 0.0, "valid/ndcg@10": 1.0, "train/loss": 2.0}]
    assert "selected" not in experiment.metrics_summary(lines, "valid/ndgc@10")
    told = capsys.readouterr().err
    assert "select='valid/ndgc@10' was never measured" in told
    assert "valid/ndcg@10" in told and told.count("\n") == 1
    experiment.metrics_summary(lines, "valid/ndcg@10")
    experiment.metrics_summary(lines)
    assert capsys.readouterr().err == ""
