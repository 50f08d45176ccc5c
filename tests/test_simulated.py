"""Logs of simulated users against their exact expectations."""

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxrec.data import simulated
from jaxrec.envs import tabular_users
from jaxrec.types import UserError

SMALL = dict(num_users=400, horizon=20, impressions=True, users=dict(num_items=40))


@pytest.fixture(scope="module")
def log():
    return simulated.load(SMALL)


def test_sessions_are_contiguous_in_time_and_long_enough(log):
    session, item, kind = (log.events[name] for name in ("session", "item", "kind"))
    dtypes = {name: array.dtype.name for name, array in log.events.items()}
    assert dtypes == dict(
        session="int64", item="int32", kind="int32", reward="float32", time="int64"
    )
    assert item.min() >= 1 and item.max() <= 40 and set(kind) == {0, 1}
    np.testing.assert_array_equal(log.events["reward"], np.float32([0.2, 1.0])[kind])
    step = np.diff(session)
    assert set(step) == {0, 1} and session[0] == 0
    assert (np.diff(log.events["time"])[step == 0] > 0).all()
    first = np.flatnonzero(np.r_[True, np.diff(log.impressions["user"]) > 0])
    assert (np.diff(log.impressions["time"][first]) >= 0).all()
    assert np.bincount(session).min() >= 2
    facts = log.facts
    assert facts["num_sessions"] == session[-1] + 1
    assert facts["purchase_share"] == kind.mean()
    assert facts["attributes"].shape == (41, 20) and not facts["attributes"][0].any()
    assert (facts["attributes"][1:].sum(1) == 1).all()


def test_log_is_a_function_of_settings_and_seed(log):
    same = simulated.load(ConfigDict(SMALL | dict(path="", impressions=False)))
    assert same.impressions is None
    for name, array in log.events.items():
        np.testing.assert_array_equal(array, same.events[name])
    other = simulated.load(SMALL | dict(seed=1))
    assert not np.array_equal(log.events["item"][:50], other.events["item"][:50])
    # Another seed is other users of the same world.
    hidden = [
        simulated.population(SMALL | dict(seed=seed)).facts["hidden"]["embedding"]
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*hidden)


def test_chunks_are_different_users(monkeypatch):
    monkeypatch.setattr(simulated, "CHUNK", 200)
    log = simulated.load(SMALL)
    user, item = log.impressions["user"], log.impressions["item"]
    assert user.max() == 399
    first = item[np.flatnonzero(np.r_[True, np.diff(user) > 0])]
    assert len(first) == 400
    assert not np.array_equal(first[:200], first[200:])


def test_events_are_the_impressions_with_a_reaction(log):
    shown = log.impressions
    event = (shown["click"] | shown["purchase"]) & (shown["session"] >= 0)
    for name in ("session", "item", "time"):
        np.testing.assert_array_equal(shown[name][event], log.events[name])
    np.testing.assert_array_equal(shown["purchase"][event], log.events["kind"] == 1)
    assert ((shown["propensity"] > 0) & (shown["propensity"] <= 1)).all()
    assert np.bincount(shown["user"], minlength=400).min() >= 1
    last = np.r_[np.diff(shown["user"]) > 0, True]
    assert not shown["left"][~last].any()
    assert log.facts["truncated"] == pytest.approx(1 - shown["left"].sum() / 400)
    # Importance weights of the uniform policy at the first item have mean 1.
    first = np.flatnonzero(np.r_[True, np.diff(shown["user"]) > 0])
    weight = 1 / 40 / shown["propensity"][first]
    assert abs(weight.mean() - 1) < 5 * weight.std() / np.sqrt(400)


def test_tabular_log_has_its_exact_statistics():
    log = simulated.load(
        dict(mode="tabular", users=dict(num_items=6), num_users=20_000)
    )
    world = tabular_users.tables(dict(num_items=6))
    session, item, kind = (log.events[name] for name in ("session", "item", "kind"))
    assert log.facts["num_sessions"] == 20_000 and log.facts["truncated"] < 1e-3
    previous = np.where(np.r_[True, np.diff(session) > 0], 0, np.r_[0, item[:-1]])
    # The visits (i, j) expected of a user solve a linear system.
    stay = world.behaviour * (1 - world.hazard)[None]
    visits = np.linalg.solve(np.eye(7) - stay.T, np.eye(7)[0])
    wanted = visits[:, None] * world.behaviour
    found = np.zeros((7, 7))
    np.add.at(found, (previous, item), 1)
    np.testing.assert_allclose(
        found / 20_000, wanted, atol=5 * np.sqrt(2 * wanted.max() / 20_000)
    )
    assert len(item) / 20_000 == pytest.approx(wanted.sum(), rel=0.03)
    for i, j in zip(*np.nonzero(found > 2000)):
        bought = kind[(previous == i) & (item == j)]
        p = world.purchase[i, j]
        assert abs(bought.mean() - p) < 5 * np.sqrt(p * (1 - p) / len(bought))
    last = np.r_[np.diff(session) > 0, True]
    for j in range(1, 7):
        left, h = last[item == j], world.hazard[j]
        assert abs(left.mean() - h) < 5 * np.sqrt(h * (1 - h) / len(left))
    # The mean return of a session is V^beta(start) at gamma = 1.
    value = world.behaviour[0, 1:] @ tabular_users.policy_q(world, 1.0)[0, 1:]
    total = np.bincount(session, log.events["reward"])
    assert abs(total.mean() - value) < 5 * total.std() / np.sqrt(20_000)


def test_tabular_keeps_single_event_sessions():
    log = simulated.load(dict(mode="tabular", num_users=300))
    assert (np.bincount(log.events["session"]) == 1).any()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(mode="bandit"), "data.mode='bandit'"),
        (dict(num_users=0), "data.num_users=0"),
        (dict(horizon=-1), "data.horizon=-1"),
        (dict(horizon=1), "no simulated session"),
        (dict(users=dict(hue=1)), "users have no 'hue'"),
        (dict(users="hue=1"), "users have no 'hue': use num_items, "),
        (dict(users="num_items=few"), "data.users: num_items='few' is not a whole"),
        (dict(users="num_items=4.5"), "data.users: num_items='4.5' is not a whole"),
        (dict(users=dict(num_items=[4])), "num_items=.4. is not a whole number"),
        (dict(users="bias=nan"), "data.users: bias='nan' is not a number"),
        (dict(users="world=-1"), "data.users: world=-1: a seed is 0 or more"),
        (dict(users="num_items"), "data.users='num_items': names with numbers, for"),
        (dict(users=7), "data.users='7': names with numbers"),
    ],
)
def test_impossible_logs_are_refused(wrong, message):
    with pytest.raises(UserError, match=message) as error:
        simulated.load(SMALL | wrong)
    assert "\n" not in str(error.value)


def test_users_are_set_on_the_command_line(monkeypatch):
    """As text, or as Python writes a dict; `--help` still needs no JAX."""
    wanted = dict(num_items=40, world=3, bias=-2.0, drift=0.0)
    text = "num_items=40, world=3,bias=-2,drift=0."
    for flag in ("", text, str(wanted)):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        argument = ["--config.data.users=" + flag] if flag else []
        argument = ["main", "--config=configs/ce.py:smoke", *argument]
        monkeypatch.setattr("sys.argv", argument)  # where config_flags looks, too
        values(argument)
        resolved = ConfigDict(values.config.to_dict())
        found = simulated.settings(resolved.data)["users"]
        assert found == (wanted if flag else {})
        for name, value in found.items():
            assert type(value) is type(wanted[name])
    assert simulated.population(dict(users=text)).num_items == 40
