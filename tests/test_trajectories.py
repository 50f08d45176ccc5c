"""Flat rows: episode ends, derived columns, statistics, splits, refusals."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.data import rows, toy
from jaxrec.data import trajectories as trajectories_lib
from jaxrec.types import UserError


def config(**changes):
    return ConfigDict(dict(window=0, valid_fraction=0.0, top=1.0, seed=0) | changes)


def make(terminal, timeout=None, next_observation=True, **changes):
    """Rows numbered 0, 1, ... in observation[:, 0] and reward; one action."""
    number = np.arange(len(terminal), dtype=np.float32)
    observation = np.stack([number, np.full_like(number, 3)], 1)
    return rows.from_arrays(
        observation=observation,
        action=np.full((len(number), 1), 0.5),
        reward=number,
        terminal=terminal,
        timeout=timeout,
        next_observation=observation + [1, 0] if next_observation else None,
        **changes,
    )


def test_terminal_is_not_timeout_and_the_last_episode_is_kept():
    found = make(terminal=[0, 0, 1, 0, 0, 0, 0], timeout=[0, 0, 0, 0, 1, 0, 0])
    assert trajectories_lib.lengths(found).tolist() == [3, 2, 2]
    assert trajectories_lib.starts(found).tolist() == [0, 3, 5]
    assert trajectories_lib.lengths(found).sum() == len(found.reward) == 7
    assert found.timeout.tolist() == [False] * 4 + [True, False, True]
    train = trajectories_lib.dataset(found, config()).train
    # Critics mask by this column: 1 only where the environment ended the episode.
    assert train["terminal"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert train["valid_next"].tolist() == [1] * 7
    assert train["timestep"].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert train["return_to_go"].tolist() == [3, 3, 2, 7, 4, 11, 6]


def test_a_row_that_is_both_is_a_terminal():
    found = make(terminal=[0, 1, 0], timeout=[0, 1, 0])
    assert found.terminal.tolist() == [False, True, False]
    assert found.timeout.tolist() == [False, False, True]


def test_without_next_observations_cut_rows_go_and_deaths_stay():
    found = make([0, 0, 1, 0, 0, 1, 0, 0], [0] * 4 + [1, 0, 0, 0], False)
    # Row 4 (cut) and row 7 (end of the file) have no known successor; rows 2 and 5
    # died. Row 5 is an episode of its own, rows 6-7 one that is left with row 6.
    assert found.reward.tolist() == [0, 1, 2, 3, 5, 6]
    assert found.terminal.tolist() == [False, False, True, False, True, False]
    assert found.timeout.tolist() == [False, False, False, True, False, True]
    assert found.valid_next.tolist() == [True, True, False, True, False, True]
    true_next = found.valid_next
    assert found.next_observation[true_next, 0].tolist() == [1, 2, 4, 7]
    assert trajectories_lib.lengths(found).tolist() == [3, 1, 1, 1]


def test_an_episode_of_one_cut_row_vanishes_alone():
    found = make([0, 0, 0, 1], [0, 1, 1, 0], next_observation=False)
    assert found.reward.tolist() == [0, 3]
    assert trajectories_lib.lengths(found).tolist() == [1, 1]
    found = make([0, 1, 0], [0, 0, 0], next_observation=False)
    assert found.terminal.tolist() == [False, True] and not found.timeout.any()
    with pytest.raises(UserError, match="one row long"):
        make([0, 0], [1, 1], next_observation=False)


@pytest.mark.parametrize("chunk", [1 << 18, 3])
def test_a_next_observation_of_another_episode_ends_this_one(chunk, monkeypatch):
    monkeypatch.setattr(trajectories_lib, "CHUNK", chunk)
    number = np.array([0, 1, 2, 10, 11, 12, 20], np.float32)[:, None]
    columns = dict(action=np.zeros((7, 1)), reward=np.ones(7), terminal=np.zeros(7))
    for timeout in (None, np.zeros(7), np.arange(7) == 2):
        # Rounding is no reset.
        following = (number + 1) * (1 + 1e-6)
        found = rows.from_arrays(
            number, **columns, timeout=timeout, next_observation=following
        )
        assert trajectories_lib.lengths(found).tolist() == [3, 3, 1]
        assert found.valid_next.all() and len(found.reward) == 7


def test_time_limit_is_a_timeout_even_where_the_file_says_terminal():
    found = make(terminal=[0, 0, 1, 0, 1, 0, 0, 0, 0, 0], time_limit=3)
    assert found.terminal.tolist() == [i == 4 for i in range(10)]
    assert trajectories_lib.lengths(found).tolist() == [3, 2, 3, 2]
    assert make(terminal=[0, 0, 1, 0]).terminal[2]


def test_returns_count_the_unfinished_episode_and_set_the_range():
    found = make(terminal=[0, 1, 0, 0, 1, 0])
    assert trajectories_lib.returns(found).tolist() == [1, 9, 5]
    info = trajectories_lib.dataset(found, config()).info
    assert (info["return_min"], info["return_max"], info["return_mean"]) == (1, 9, 5)
    assert (info["num_rows"], info["num_episodes"]) == (6, 3)


def test_episodes_are_views_that_join_again():
    found = make(terminal=[0, 1, 0, 0, 1, 0], extras=dict(qpos=np.arange(6.0)))
    parts = list(trajectories_lib.episodes(found))
    assert [part.reward.tolist() for part in parts] == [[0, 1], [2, 3, 4], [5]]
    assert np.shares_memory(parts[1].observation, found.observation)
    again = trajectories_lib.concatenate(parts, found.info)
    for got, wanted in zip(again[:7], found[:7]):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(again.extras["qpos"], found.extras["qpos"])
    arrays = trajectories_lib.flatten(found)
    assert set(arrays) == {*trajectories_lib.COLUMNS, "extras/qpos"}
    assert trajectories_lib.unflatten(arrays, found.info).extras["qpos"][5] == 5


@pytest.mark.parametrize("chunk", [1 << 18, 7])
def test_statistics_are_numpys(chunk, monkeypatch):
    monkeypatch.setattr(trajectories_lib, "CHUNK", chunk)
    generator = np.random.default_rng(0)
    observation = generator.normal(1000, [1, 0], (50, 2)).astype(np.float32)
    found = rows.from_arrays(
        observation,
        generator.uniform(-1, 1, (50, 3)),
        generator.normal(size=50),
        terminal=np.arange(50) % 10 == 4,
        timeout=np.zeros(50),
    )
    info = trajectories_lib.dataset(found, config()).info
    wide = found.observation.astype(np.float64)
    np.testing.assert_allclose(info["observation_mean"], wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(info["observation_std"], wide.std(0), rtol=1e-5)
    assert info["observation_std"][1] == 0  # constant, and not the noise of rounding
    delta = (found.next_observation - wide)[found.valid_next]
    np.testing.assert_allclose(info["delta_std"], delta.std(0), rtol=1e-5)
    assert info["reward_mean"] == pytest.approx(found.reward.mean(), rel=1e-5)
    assert info["reward_std"] == pytest.approx(found.reward.std(), rel=1e-5)
    assert info["observation_mean"].dtype == np.float32
    assert (info["observation_size"], info["action_size"]) == (2, 3)


def test_valid_fraction_holds_out_whole_episodes_by_seed():
    found = toy.load(ConfigDict(dict(rows=1000, seed=0)))
    whole = trajectories_lib.dataset(found, config())
    first = trajectories_lib.dataset(found, config(valid_fraction=0.25))
    valid = first.evals["valid"]
    assert len(valid["reward"]) == 250 and len(first.train["reward"]) == 750
    for columns in (first.train, valid):
        assert np.array_equal(
            columns["timestep"], np.arange(len(columns["reward"])) % 50
        )
    together = np.concatenate([first.train["observation"], valid["observation"]])
    assert len(np.unique(together, axis=0)) == 1000
    # Statistics are those of what is trained on, trajectories are whole.
    np.testing.assert_allclose(
        first.info["observation_mean"], first.train["observation"].mean(0), atol=1e-6
    )
    assert len(first.info["trajectories"].reward) == 1000
    again = trajectories_lib.dataset(found, config(valid_fraction=0.25))
    other = trajectories_lib.dataset(found, config(valid_fraction=0.25, seed=1))
    assert np.array_equal(again.evals["valid"]["reward"], valid["reward"])
    assert not np.array_equal(other.evals["valid"]["reward"], valid["reward"])
    assert whole.evals == {}


def test_top_keeps_the_best_episodes_in_their_order():
    found = make(terminal=[0, 1, 0, 0, 1, 1, 0])  # returns 1, 9, 5, 6
    best = trajectories_lib.dataset(found, config(top=0.5))
    assert best.train["reward"].tolist() == [2, 3, 4, 6]
    assert (best.info["return_min"], best.info["num_episodes"]) == (6, 2)
    one = trajectories_lib.dataset(found, config(top=0.01))
    assert one.train["reward"].tolist() == [2, 3, 4]
    hundred = make(terminal=np.ones(100))
    kept = trajectories_lib.dataset(hundred, config(top=0.29))
    assert kept.info["num_episodes"] == 29  # 0.29 * 100 is 28.999999999999996
    tied = hundred._replace(reward=np.ones(100, np.float32))
    kept = trajectories_lib.dataset(tied, config(top=0.5))
    assert kept.train["observation"][:, 0].tolist() == list(range(50))
    with pytest.raises(UserError, match="leaves none to train on"):
        trajectories_lib.dataset(found, config(top=0.25, valid_fraction=0.5))


@pytest.mark.parametrize(
    "changes",
    [dict(top=0.0), dict(top=1.5), dict(valid_fraction=1.0), dict(valid_fraction=-0.1)],
)
def test_shares_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=f"data.{next(iter(changes))}="):
        trajectories_lib.dataset(make(terminal=[0, 1, 1]), config(**changes))


def test_mapped_columns_stay_on_the_disk(tmp_path):
    found = make(terminal=[0, 1, 0, 0])
    mapped = {}
    for name, array in trajectories_lib.flatten(found).items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    found = trajectories_lib.unflatten(mapped, {})
    data = trajectories_lib.dataset(found, config(window=2))
    for name in ("observation", "action", "reward", "next_observation"):
        assert isinstance(data.train[name], np.memmap)
    assert data.train["return_to_go"].tolist() == [1, 1, 5, 3]
    assert data.window == data.info["window"] == 2


def test_slightly_large_actions_are_clipped_larger_ones_named():
    found = make(terminal=[0, 0, 1])
    action = np.array([[0.5], [1.00005], [-1.00005]], np.float32)
    clipped = trajectories_lib.validate(found._replace(action=action))
    assert clipped.action.tolist() == [[0.5], [1], [-1]]
    with pytest.raises(UserError, match="action of row 1 reaches 1.5"):
        trajectories_lib.validate(
            found._replace(action=np.array([[0], [1.5], [0]], np.float32))
        )
    assert make(terminal=[1], clip_actions=True).action.max() <= 1


@pytest.mark.parametrize("chunk", [1 << 18, 2])
@pytest.mark.parametrize(
    "column", ["observation", "action", "reward", "next_observation"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_with_their_row(
    column, value, chunk, monkeypatch
):
    monkeypatch.setattr(trajectories_lib, "CHUNK", chunk)
    found = make(terminal=[0, 0, 1, 0, 0, 0])
    broken = getattr(found, column).copy()
    broken[4] = value
    with pytest.raises(UserError, match=f"{column} of row 4 is NaN or infinite"):
        trajectories_lib.dataset(found._replace(**{column: broken}), config())


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(observation=np.zeros((3, 2, 2), "f4")), "observation has shape"),
        (dict(action=np.zeros(3, "f4")), "action has shape"),
        (dict(action=np.zeros((3, 0), "f4")), "action has shape"),
        (dict(reward=np.zeros((3, 1), "f4")), "reward has shape"),
        (dict(next_observation=np.zeros((3, 5), "f4")), "they must agree"),
        (dict(action=np.zeros((2, 1), "f4")), "equally many rows.*action 2"),
        (dict(observation=np.zeros((3, 2))), "observation is float64"),
        (dict(terminal=np.zeros(3, "f4")), "terminal is float32"),
        (dict(terminal=np.zeros(3, bool)), "last row must end"),
        (dict(extras=dict(qpos=np.zeros(2))), "qpos 2"),
    ],
)
def test_wrong_shapes_are_refused(changes, message):
    found = make(terminal=[0, 1, 1])
    trajectories_lib.validate(found)
    with pytest.raises(UserError, match=message):
        trajectories_lib.validate(found._replace(**changes))


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="no episodes"):
        rows.from_arrays(np.zeros((0, 2)), np.zeros((0, 1)), [], [])
    empty = trajectories_lib.take(make(terminal=[0, 1]), slice(0, 0))
    with pytest.raises(UserError, match="no episodes"):
        trajectories_lib.validate(empty)
    with pytest.raises(UserError, match="equally many rows.*reward 2"):
        rows.from_arrays(np.zeros((3, 2)), np.zeros((3, 1)), [0, 0], [0, 0, 0])


def test_hopper_that_lies_on_the_ground_is_refused():
    found = make(terminal=[0, 1, 1])
    low = found.observation * [0, 1] + [0.22, 0]
    info = dict(name="mine", env_id="Hopper-v4")
    noise = found._replace(observation=low.astype(np.float32), info=info)
    with pytest.raises(UserError, match="mean height .* is 0.22"):
        trajectories_lib.dataset(noise, config())
    trajectories_lib.validate(noise._replace(info=dict(name="mine", env_id="")))
    standing = (found.observation * [0, 1] + [1.2, 0]).astype(np.float32)
    trajectories_lib.validate(noise._replace(observation=standing))
