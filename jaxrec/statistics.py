"""Intervals over seeds, over events, and comparisons of methods and of runs.

The interquartile mean with a stratified bootstrap interval and the probability of
improvement: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice",
section 4. Two runs judged on the same events are compared by their differences: the
events of a session are not independent, so sessions are what is drawn or flipped.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

RESAMPLES = 10_000  # ours; rliable's examples take 2,000 to 50,000
EVENT_RESAMPLES = 2_000  # ours: of all sessions of a test set, which may be many


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float[S, ...] -> (mean, half width of the 95% Student t interval over S).

    The half width is NaN for S = 1.
    """
    count = len(values)
    if count < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    quantile = special.stdtrit(count - 1, 0.975)
    return values.mean(0), quantile * values.std(0, ddof=1) / np.sqrt(count)


def iqm(scores: np.ndarray) -> np.ndarray:
    """float[..., n] -> mean without the lowest and highest floor(n / 4) values."""
    cut = scores.shape[-1] // 4
    return np.sort(scores, -1)[..., cut : scores.shape[-1] - cut].mean(-1)


def _bootstrap(
    statistic: Callable[..., np.ndarray], *strata: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """statistic(*strata) and its 95% percentile interval over resampled seeds.

    Each stratum, scores float[S_i] of one method on one task, is drawn from with
    replacement by itself. NaN bounds where one has a single seed: no spread is known.
    """
    generator = np.random.default_rng(0)
    drawn = [
        [x[generator.integers(len(x), size=(RESAMPLES, len(x)))] for x in xs]
        for xs in strata
    ]
    low, high = np.percentile(statistic(*drawn), [2.5, 97.5])
    if min(len(x) for xs in strata for x in xs) < 2:
        low = high = np.nan
    return float(statistic(*strata)), float(low), float(high)


def bootstrap_iqm(tasks: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean over the scores [S_i] of all tasks, lower, upper bound."""
    return _bootstrap(lambda xs: iqm(np.concatenate(xs, -1)), tasks)


def improvement(
    xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """P(a run of x scores above one of y), mean over tasks, lower, upper bound.

    Per task the Mann-Whitney U over all n m pairs, ties counted one half.
    """

    def probability(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
        signs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in zip(xs, ys)]
        return np.mean([0.5 + 0.5 * s.mean((-2, -1)) for s in signs], axis=0)

    return _bootstrap(probability, xs, ys)


def estimate(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of the finite values, 95% lower and upper bound; NaN where unknown."""
    values = values[np.isfinite(values)]
    mean, half = interval(values) if len(values) else (np.nan, np.nan)
    return float(mean), float(mean - half), float(mean + half)


def resample(rows: np.ndarray, resamples: int = EVENT_RESAMPLES) -> np.ndarray:
    """Means over rows drawn with replacement: float[n, C] -> float[resamples, C].

    The same draw for all columns, so that ratios and differences of them stay paired.
    """
    generator = np.random.default_rng(0)
    count = len(rows)
    drawn = np.empty((resamples, rows.shape[1]))
    for i in range(resamples):
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        drawn[i] = times @ rows / count
    return drawn


def _by_session(values: np.ndarray, session: np.ndarray | None) -> np.ndarray:
    """float[N] -> [sum, number of events] of each session, float[sessions, 2]."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape}: one number an event, please")
    if session is None:
        return np.stack([values, np.ones(len(values))], 1)
    if len(session) != len(values):
        raise ValueError(f"{len(values)} values of {len(session)} session numbers")
    _, number = np.unique(session, return_inverse=True)
    return np.stack([np.bincount(number, values), np.bincount(number)], 1)


def bootstrap_mean(
    values: np.ndarray, session: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Mean over events and its 95% percentile interval over resampled sessions.

    values: float[N]; session: int[N], any number of the session (or the user) of an
    event; without it events are drawn. NaN bounds where there is but one to draw.
    """
    rows = _by_session(values, session)
    low = high = np.nan
    if len(rows) > 1:
        drawn = resample(rows)
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    total, count = rows.sum(0)
    return float(total / count), float(low), float(high)


def _difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape:
        raise ValueError(
            f"shapes {x.shape} and {y.shape}: a paired test needs the same events"
        )
    return x - y


def paired_bootstrap(
    x: np.ndarray, y: np.ndarray, session: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Mean of x - y over events, 95% lower and upper bound; see `bootstrap_mean`.

    x, y: float[N], the metric of two runs on the same events in the same order.
    """
    return bootstrap_mean(_difference(x, y), session)


def permutation_test(
    x: np.ndarray, y: np.ndarray, session: np.ndarray | None = None
) -> float:
    """Two-sided p of "x and y may be swapped within any session".

    Random signs of the sessions' differences; the data as they are count as one of the
    draws, so p is never 0 (Phipson and Smyth 2010).
    """
    difference = _by_session(_difference(x, y), session)[:, 0]
    generator = np.random.default_rng(0)
    # Equal sums that are added up in another order differ by rounding.
    least = abs(difference.sum()) - 1e-9 * np.abs(difference).sum()
    beyond = 0
    for _ in range(EVENT_RESAMPLES):
        sign = 2.0 * generator.integers(2, size=len(difference), dtype=np.int8) - 1
        beyond += abs(sign @ difference) >= least
    return (1 + beyond) / (1 + EVENT_RESAMPLES)


def paired_t(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Student's paired t over seeds: mean of x - y, 95% bounds, two-sided p.

    x, y: float[S], run i of both with the same seed or the same split. NaN for S = 1.
    """
    difference = _difference(x, y)
    mean, half = interval(difference)
    count = len(difference)
    if count < 2:
        return float(mean), np.nan, np.nan, np.nan
    error = difference.std(ddof=1) / np.sqrt(count)
    if error > 0:
        p = 2 * special.stdtr(count - 1, -abs(mean) / error)
    else:
        p = float(mean == 0)
    return float(mean), float(mean - half), float(mean + half), float(p)
