"""What users were shown: the same sessions and parts as the events of the log."""

import functools
import tempfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import otto_rec
from jaxrec.data import simulated
from jaxrec.data.impressions import IGNORED, last_rows
from jaxrec.data.recommender import simulated_users
from jaxrec.errors import UserError


@functools.cache
def both_views():
    """The config of the impressions, the events, the impressions."""
    config = ConfigDict(otto_rec.get_config("smoke").data.to_dict())
    config.data_dir = tempfile.mkdtemp(prefix="jaxrec-impressions-")
    # Every item occurs in training.
    config.update(num_users=300, users=dict(num_items=60))
    events = simulated_users(config)
    config.update(otto_rec.WORLD_VIEW)
    return config, events, simulated_users(config)


def test_impressions_hold_the_events_of_the_same_parts():
    _, events, shown = both_views()
    for part in ("train", "valid", "test"):
        rows = shown.train if part == "train" else shown.evals[part]
        own = events.train if part == "train" else events.evals[part]
        start = np.flatnonzero(rows["timestep"] == 0)
        user = np.cumsum(rows["timestep"] == 0) - 1
        event = rows["kind"] != IGNORED
        count = np.bincount(user[event], minlength=len(start))
        kept = event & (count >= simulated.MIN_EVENTS["sessions"])[user]
        for column in ("item", "kind", "reward"):
            np.testing.assert_array_equal(rows[column][kept], own[column])
        np.testing.assert_allclose(rows["reward"][~event], 0)
        assert 0 < (~event).mean() < 1
        first = rows["reward_to_go"][start]
        np.testing.assert_allclose(first, np.bincount(user, rows["reward"]), rtol=1e-5)


def test_leaving_ends_a_session_and_the_horizon_does_not():
    config, _, shown = both_views()
    log = simulated.load(dict(config, impressions=True))
    left = sum(rows["done"].sum() for rows in (shown.train, *shown.evals.values()))
    assert left == log.impressions["left"].sum()
    last = np.append(shown.train["timestep"][1:] == 0, True)
    assert (shown.train["done"][~last] == 0).all()
    cut = last & (shown.train["done"] == 0)
    assert cut.any() and (shown.train["timestep"][cut] == 49).all()


def test_windows_are_beginnings_of_sessions():
    timestep = np.array([0, 1, 2, 3, 4, 0, 0, 1, 2])
    np.testing.assert_array_equal(last_rows(timestep, 3), [2, 5, 8])
    np.testing.assert_array_equal(last_rows(timestep, 9), [4, 5, 8])


def test_impressions_refuse_parts_that_cannot_agree():
    config, _, _ = both_views()
    for field, value in (("split", "leave_one_out"), ("min_item", 4)):
        with pytest.raises(UserError, match="whole sessions"):
            simulated_users(ConfigDict(dict(config, **{field: value})))
