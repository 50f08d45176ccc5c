import itertools

import numpy as np
import pytest
from scipy import stats

from jaxrec import statistics


def test_bootstrap_of_events_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    mean, low, high = statistics.bootstrap_mean(values)
    error = values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_events_of_a_session_are_drawn_together():
    """Nine copies of each event say nothing new: the interval is that of one each."""
    values = np.random.default_rng(2).normal(size=100)
    session = np.repeat(np.arange(100) * 3 + 5, 9)
    alone = statistics.bootstrap_mean(values)
    grouped = statistics.bootstrap_mean(np.repeat(values, 9), session)
    np.testing.assert_allclose(grouped, alone)
    naive = statistics.bootstrap_mean(np.repeat(values, 9))
    assert naive[2] - naive[1] < 0.4 * (grouped[2] - grouped[1])


def test_the_mean_is_over_events_not_over_sessions():
    mean, low, high = statistics.bootstrap_mean([1.0, 1.0, 1.0, 0.0], [4, 4, 4, 7])
    assert (mean, low, high) == (0.75, 0.0, 1.0)
    mean, low, high = statistics.bootstrap_mean([1.0, 2.0], [3, 3])
    assert mean == 1.5 and np.isnan([low, high]).all()


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        _, low, high = statistics.bootstrap_mean(generator.exponential(size=80))
        covered += low <= 1.0 <= high
    assert 50 <= covered < 60  # 57 expected


def test_pairing_removes_what_both_runs_share():
    generator = np.random.default_rng(4)
    shared = generator.normal(size=300)
    x, y = shared + 0.1 + generator.normal(0, 0.1, 300), shared
    mean, low, high = statistics.paired_bootstrap(x, y)
    assert 0.08 < low < mean < high < 0.12
    assert statistics.permutation_test(x, y) == 1 / 2001
    x_low, x_high = statistics.bootstrap_mean(x)[1:]
    assert x_low < statistics.bootstrap_mean(y)[0] < x_high  # unpaired: nothing seen


def test_permutations_against_all_sign_flips():
    x = np.array([0.3, 0.1, 0.5, -0.2, 0.4, 0.6, 0.1, 0.2, -0.1, 0.3])
    flips = [
        abs(np.dot(signs, x)) >= abs(x.sum()) - 1e-12
        for signs in itertools.product([-1, 1], repeat=len(x))
    ]
    exact = np.mean(flips)
    assert 0.01 < exact < 0.1
    found = statistics.permutation_test(x, np.zeros(10))
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / 2000))
    assert found == statistics.permutation_test(np.zeros(10), x)  # two-sided


def test_permutations_flip_whole_sessions():
    """One session with all of the difference is one coin, not 50."""
    x = np.concatenate([np.ones(50), np.zeros(50)])
    session = np.repeat([0, 1], 50)
    assert statistics.permutation_test(x, np.zeros(100), session) == 1.0
    assert statistics.permutation_test(x, np.zeros(100)) < 0.001


def test_permutations_of_equal_runs_find_nothing():
    x = np.random.default_rng(5).random(50)
    assert statistics.permutation_test(x, x) == 1.0
    p = [
        statistics.permutation_test(*np.random.default_rng(i).normal(size=(2, 40)))
        for i in range(60)
    ]
    assert sum(np.array(p) < 0.1) <= 14  # 6 expected
    assert 0.35 < np.mean(p) < 0.65


def test_paired_t_against_scipy():
    x, y = np.random.default_rng(6).normal(size=(2, 5))
    mean, low, high, p = statistics.paired_t(x, y)
    oracle = stats.ttest_rel(x, y)
    assert mean == pytest.approx((x - y).mean())
    assert p == pytest.approx(oracle.pvalue)
    expected = oracle.confidence_interval(0.95)
    np.testing.assert_allclose([low, high], [expected.low, expected.high])


def test_paired_t_of_one_seed_and_of_equal_differences():
    assert np.isnan(statistics.paired_t(np.ones(1), np.zeros(1))[1:]).all()
    assert statistics.paired_t(np.ones(3), np.zeros(3)) == (1.0, 1.0, 1.0, 0.0)
    assert statistics.paired_t(np.ones(3), np.ones(3)) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "call", [statistics.paired_bootstrap, statistics.permutation_test]
)
def test_runs_on_other_events_are_not_compared(call):
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\).*same events"):
        call(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="3 values of 2 session"):
        call(np.zeros(3), np.zeros(3), np.zeros(2))


def test_t_interval_by_hand():
    # sd of 1, 2, 3 is 1; t(0.975, 2) = 4.302653; 4.302653 / sqrt(3) = 2.484138
    mean, half = statistics.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert half == pytest.approx(2.484138, abs=1e-6)
    # sd of 1..5 is 1.581139; t(0.975, 4) = 2.776445; over sqrt(5): 1.963243
    _, halves = statistics.interval(
        np.arange(1.0, 6.0)[:, None] * np.array([[1.0, 2.0]])
    )
    np.testing.assert_allclose(halves, [1.963243, 3.926486], atol=1e-5)


def test_one_seed_has_no_interval():
    mean, low, high = statistics.estimate(np.array([3.0]))
    assert mean == 3.0 and np.isnan(low) and np.isnan(high)


def test_iqm_by_hand():
    assert statistics.iqm(np.arange(1.0, 9.0)) == 4.5  # of 3, 4, 5, 6
    assert statistics.iqm(np.array([100.0, 0.0, 2.0, 1.0, 3.0])) == 2.0  # of 1, 2, 3
    assert statistics.iqm(np.array([5.0, 1.0, 3.0])) == 3.0  # floor(3 / 4) = 0 cut
    rows = np.array([[0.0, 1, 3, 9], [4.0, 8, 0, 2]])
    np.testing.assert_array_equal(statistics.iqm(rows), [2.0, 3.0])


def test_bootstrap_is_stratified():
    # Within each task nothing varies, so nor may the interval; drawing from all six
    # scores at once would give a wide one.
    tasks = [np.zeros(3), np.full(3, 10.0)]
    assert statistics.bootstrap_iqm(tasks) == (5.0, 5.0, 5.0)
    # Two seeds 0 and 1: their mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert statistics.bootstrap_iqm([np.array([0.0, 1.0])]) == (0.5, 0.0, 1.0)
    value, low, high = statistics.bootstrap_iqm([np.array([4.0]), np.array([0.0, 2.0])])
    assert value == 2.0 and np.isnan(low) and np.isnan(high)


def test_probability_of_improvement_by_hand():
    # Task 1: of six pairs two won, two tied, two lost: 1/2. Task 2: all won: 1.
    xs = [np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0])]
    ys = [np.array([2.0, 2.0]), np.array([1.0, 2.0])]
    value, low, high = statistics.improvement(xs, ys)
    assert value == pytest.approx(0.75)
    # Task 1 alone reaches 0 and 1 with probability 1/27 > 2.5%.
    assert (low, high) == (pytest.approx(0.5), pytest.approx(1.0))
    assert statistics.improvement(ys, xs)[0] == pytest.approx(0.25)
