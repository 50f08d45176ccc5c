"""What a stage's summary tells of its metrics: last, best, selected."""

import pytest

from jaxrec import summary

NAN = float("nan")


def test_best_is_never_chosen_by_what_tests():
    names = ("valid/ndcg@10", "test/ndcg@10", "users/reward", "eval/return", "train/x")
    lines = [
        {"step": s, "wall": 1.0} | dict.fromkeys(names, v)
        for s, v in [(1, 5.0), (2, 3.0)]
    ]
    found = summary.metrics_summary(lines, "valid/ndcg@10")
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
        ("valid/click/corrected_ndcg@10", 4.0),
        ("eval/normalized_score", 4.0),
        ("eval/fqe_value", 4.0),
        ("eval/fqe_td_error", 1.0),
        ("valid/bc_distance", 1.0),
        ("valid/state_mse_error", 1.0),
        ("world/rmse@10", 1.0),
        ("world/reward_mae@1", 1.0),
        ("world/spearman", 4.0),
    ],
)
def test_what_should_fall_is_best_at_its_least(name, best):
    lines = [{"step": s, "wall": 0.0, name: v} for s, v in enumerate((2.0, 1.0, 4.0))]
    found = summary.metrics_summary(lines, name)
    assert found["best"] == {name: best} and found["selected"][name] == best


def test_what_has_no_direction_is_never_best():
    names = ("eval/return_std", "eval/length", "eval/fqe_value_std", "valid/count")
    names += ("world/theta", "world/coverage", "world/coverage_real", "world/alive@5")
    names += ("valid/q_policy", "valid/of_a_new_method")
    lines = [{"step": s, "wall": 0.0} | dict.fromkeys(names, 1.0 * s) for s in (1, 2)]
    found = summary.metrics_summary(lines)
    assert found["best"] == {} and found["last"] == dict.fromkeys(names, 2.0)


def test_the_data_of_a_result_and_its_reference_scores():
    info = dict(name="a", version="v2", env_id="Hopper-v4", window=3)
    found = summary.data_facts(info)
    reference = dict(random=-20.272305, expert=3234.3, source="D4RL")
    assert found.pop("reference") == reference
    assert found == dict(name="a", version="v2", env_id="Hopper-v4")
    own = summary.data_facts(info | dict(ref_min_score=1.0, ref_max_score=9.0))
    assert own["reference"] == dict(random=1.0, expert=9.0, source="data set")
    assert "reference" not in summary.data_facts(dict(name="toy", env_id=""))


@pytest.mark.parametrize("name", ["valid/ndcg@10", "valid/loss"])
def test_no_number_is_never_best(name):
    def lines(*values):
        return [
            {"step": s, "wall": 0.0, name: v, "test/x": [s + 0.5] * 2}
            for s, v in enumerate(values)
        ]

    # Seed 0 diverges before, seed 1 after what it measured; then seed 1 at once.
    found = summary.metrics_summary(lines([NAN, 2.0], [3.0, None]), name)
    assert found["best"] == {name: [3.0, 2.0]}
    assert found["selected"] == {"step": [1, 0], name: [3.0, 2.0], "test/x": [1.5, 0.5]}
    found = summary.metrics_summary(lines([1.0, None], [1.0, None]), name)
    assert found["best"] == {name: [1.0, None]}
    assert found["selected"] == {
        "step": [0, None],
        name: [1.0, None],
        "test/x": [0.5, None],
    }


def test_a_metric_to_select_by_that_was_never_measured_is_told(capsys):
    lines = [{"step": 1, "wall": 0.0, "valid/ndcg@10": 1.0, "train/loss": 2.0}]
    assert "selected" not in summary.metrics_summary(lines, "valid/ndgc@10")
    told = capsys.readouterr().err
    assert "select='valid/ndgc@10' was never measured" in told
    assert "valid/ndcg@10" in told and told.count("\n") == 1
    summary.metrics_summary(lines, "valid/ndcg@10")
    summary.metrics_summary(lines)
    assert capsys.readouterr().err == ""
