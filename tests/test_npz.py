"""NumPy archives and folders: real small ones, and bad ones."""

import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_data_formats import FILE, POINTER, config

from jaxrec.data import npz, rows, trajectories
from jaxrec.types import UserError

NPZ = dict(
    observation=FILE["observations"],
    action=FILE["actions"],
    reward=FILE["rewards"],
    terminal=FILE["terminals"].astype(np.float32),
)


@pytest.mark.parametrize("plural", ["", "s"])
def test_npz_whole_arrays(plural, tmp_path):
    columns = {k + plural: v for k, v in NPZ.items()} | dict(
        timeouts=FILE["timeouts"], qpos=FILE["infos/qpos"], other=np.ones(2)
    )
    np.savez(tmp_path / "mine_Hopper-v4.npz", **columns)
    found = npz.load(config(path=str(tmp_path / "mine_Hopper-v4.npz")))
    assert found.observation[:, 0].tolist() == [100, 103, 104]
    assert found.valid_next.tolist() == [True, True, False]
    assert set(found.extras) == {"qpos"}
    assert found.info["env_id"] == "Hopper-v4"
    columns["next_observation"] = FILE["next_observations"]
    np.savez_compressed(tmp_path / "b.npz", **columns)
    found = npz.load(config(path=str(tmp_path / "b.npz"), name="Walker2d-v4/medium"))
    assert found.valid_next.all() and len(found.reward) == 4
    version = found.info["version"]
    assert found.info == dict(name="b", env_id="", version=version)
    # The version is the contents': not the name's, the form's or the day's.
    folder = tmp_path / "folder"
    folder.mkdir()
    for key, column in columns.items():
        np.save(folder / f"{key}.npy", column)
    assert npz.load(config(path=str(folder))).info["version"] == version != ""
    columns["timeouts"] = np.zeros(4, bool)
    np.savez(tmp_path / "b.npz", **columns)
    assert npz.load(config(path=str(tmp_path / "b.npz"))).info["version"] != version


def test_fingerprints_of_large_arrays_see_their_ends_and_sizes(monkeypatch):
    monkeypatch.setattr(rows, "SAMPLED", 64)
    column = np.zeros(1000, np.float32)
    versions = {rows.fingerprint(dict(a=column)), rows.fingerprint(dict(b=column))}
    versions.add(rows.fingerprint(dict(a=column[:-1])))
    column[-1] = 1
    versions.add(rows.fingerprint(dict(a=column)))
    assert len(versions) == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(terminal=[0, np.nan, 0, 1]), "bad: terminal of row 1 is nan"),
        (dict(terminal=[0, 0, 2, 1]), "bad: terminal of row 2 is 2: it must be 0 or 1"),
        (dict(timeout=[0, 0, 0, -1]), "bad: timeout of row 3 is -1"),
        (dict(terminal=list("0001")), "bad: terminal is <U1, it must be numbers"),
        (dict(reward=list("abcd")), "bad: reward is <U1, it must be numbers"),
        (dict(observation=np.full((4, 1), "x")), "bad: observation is <U1"),
        (
            dict(reward=np.ones((4, 2))),
            r"bad: reward has shape \(4, 2\), it must be one",
        ),
        (dict(reward=np.float32(1)), "bad: reward is a single number"),
        (dict(qpos=np.float32(1)), "bad: arrays .* equally many rows, .* qpos 1"),
        (dict(reward=np.ones(3)), "bad: arrays .* equally many rows, .* reward 3"),
    ],
)
def test_columns_of_another_kind_are_refused(changes, message, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **NPZ | dict(timeout=FILE["timeouts"]) | changes)
    with pytest.raises(UserError, match=message):
        npz.load(config(path=str(path)))


def test_npz_numbered_episodes_end_with_a_timeout_and_in_order(tmp_path):
    columns = {}
    for number in (10, 3):
        for key, value in NPZ.items():
            columns[f"{key}_{number}"] = value + (key == "reward") * number
        columns[f"terminal_{number}"] = np.array([0, 0, 0, number == 10], np.float32)
        columns[f"next_observation_{number}"] = FILE["next_observations"]
    np.savez(tmp_path / "a.npz", **columns)
    found = npz.load(config(path=str(tmp_path / "a.npz")))
    assert found.reward.tolist() == [4, 5, 6, 7, 11, 12, 13, 14]
    assert found.terminal.tolist() == [i == 7 for i in range(8)]
    # 1 and 5 are cut inside of the numbered episodes, by their next observations.
    assert np.flatnonzero(found.timeout).tolist() == [1, 3, 5]
    del columns["reward_10"]
    np.savez(tmp_path / "b.npz", **columns)
    with pytest.raises(UserError, match="lacks some: reward_10"):
        npz.load(config(path=str(tmp_path / "b.npz")))


def test_npz_time_limit(tmp_path):
    """The fault of some collectors: `terminal` where only the time was up."""
    length = 1000
    np.savez(
        tmp_path / "a.npz",
        observation=np.ones((length + 5, 3)),
        next_observation=np.ones((length + 5, 3)),
        action=np.zeros((length + 5, 1)),
        reward=np.ones(length + 5),
        terminal=np.isin(np.arange(length + 5), [length - 1, length + 4]),
    )
    found = npz.load(config(path=str(tmp_path / "a.npz"), time_limit=1000))
    assert np.flatnonzero(found.terminal).tolist() == [length + 4]
    assert np.flatnonzero(found.timeout).tolist() == [length - 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(observation_1=np.zeros((2, 5))), "episodes do not fit together"),
        (dict(observation_1=np.float32(1)), "episodes do not fit together"),
        (dict(timeout_0=[0, 1], timeout_1=[1]), "equally many rows.*timeout 3"),
    ],
)
def test_npz_numbered_episodes_that_do_not_fit(changes, message, tmp_path):
    whole = {
        f"{name}_{i}": NPZ[name][2 * i : 2 * i + 2]
        for name in ("observation", "action", "reward", "terminal")
        for i in range(2)
    }
    np.savez(tmp_path / "a.npz", **whole | changes)
    with pytest.raises(UserError, match=message) as caught:
        npz.load(config(path=str(tmp_path / "a.npz"), time_limit=10))
    assert "\n" not in str(caught.value)


def test_npz_bad_files(tmp_path):
    np.savez(tmp_path / "whole.npz", **NPZ)
    whole = (tmp_path / "whole.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[damaged.index(FILE["observations"].tobytes())] ^= 1
    np.savez(tmp_path / "pickled.npz", **NPZ | dict(reward=np.array([{}] * 4, object)))
    np.save(tmp_path / "single.npy", NPZ["observation"])
    np.savez(tmp_path / "keys.npz", observation=NPZ["observation"], obs=np.ones(1))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("reward.npy", b"hello")
    bad = {
        "pointer": (POINTER, "Git LFS pointer"),
        "text": (b"not found", "no readable .npz"),
        "empty": (b"", "no readable .npz"),
        "truncated": (whole[: len(whole) // 2], "no readable .npz"),
        "damaged": (bytes(damaged), "no readable .npz"),
        "pickled": ((tmp_path / "pickled.npz").read_bytes(), "no readable .npz"),
        "single": ((tmp_path / "single.npy").read_bytes(), "no readable .npz"),
        "zip": ((tmp_path / "zip.npz").read_bytes(), "no readable .npz"),
        "keys": (
            (tmp_path / "keys.npz").read_bytes(),
            "lacks action, reward, terminal; found observation, obs",
        ),
    }
    for name, (content, message) in bad.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            npz.load(config(path=str(path)))
        assert "\n" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(UserError, match="data.path=.* cannot be read"):
        npz.load(config(path=str(tmp_path / "absent.npz")))
    with pytest.raises(UserError, match="data.path is empty: name an .npz archive"):
        npz.load(config())
    with pytest.raises(UserError, match="data.path='~nobody-here/a.npz'"):
        npz.load(config(path="~nobody-here/a.npz"))


@pytest.mark.parametrize(
    "env, returns", [("Hopper", (3717, 3718)), ("HalfCheetah", (4068, 4002))]
)
def test_npz_real_expert_episodes(env, returns, shared_data):
    """The files mark step 1000 as terminal and keep actions beyond [-1, 1]."""
    path = str(shared_data / "mujoco" / f"expert_episodes_{env}-v4.npz")
    found = npz.load(config(path=path, time_limit=1000, clip_actions=True))
    assert trajectories.lengths(found).tolist() == [1000, 1000]
    assert not found.terminal.any()
    assert found.timeout.sum() == 2 and found.valid_next.all()
    np.testing.assert_allclose(trajectories.returns(found), returns, atol=1)
    data = trajectories.dataset(found, config())
    assert data.info["env_id"] == f"{env}-v4"
    raw = npz.load(config(path=path))  # the limit is known by the name
    assert not raw.terminal.any()
    with pytest.raises(UserError, match="data.clip_actions=True"):
        trajectories.dataset(raw, config())


def test_a_folder_of_npy_files_stays_on_the_disk(tmp_path):
    random = np.random.default_rng(0)
    columns = dict(
        observations=random.normal(size=(30, 3)).astype(np.float32),
        actions=random.uniform(-1, 1, (30, 2)).astype(np.float32),
        rewards=np.arange(30, dtype=np.float32),
        next_observations=random.normal(size=(30, 3)).astype(np.float32),
        terminals=np.arange(30) % 10 == 9,
    )
    folder = tmp_path / "set"
    folder.mkdir()
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    np.savez(tmp_path / "set.npz", **columns)
    fields = dict(name="", time_limit=0)
    found = npz.load(ConfigDict(dict(path=str(folder), **fields)))
    archive = npz.load(ConfigDict(dict(path=str(tmp_path / "set.npz"), **fields)))
    for ours, theirs in zip(found[:7], archive[:7]):
        np.testing.assert_array_equal(ours, theirs)
    base = found.observation
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.filename is not None
    (folder / "rewards.npy").write_bytes(b"short")
    with pytest.raises(UserError, match="no readable"):
        npz.load(ConfigDict(dict(path=str(folder), **fields)))
