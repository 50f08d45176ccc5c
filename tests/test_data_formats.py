"""HDF5 and npz files: real small ones, and bad ones."""

import sys
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.data import d4rl, npz, trajectories
from jaxrec.types import UserError


def config(**changes):
    fields = dict(name="", path="", rows=0, seed=0, data_dir="", time_limit=0)
    fields |= dict(valid_fraction=0.0, top=1.0, window=0)
    return ConfigDict(fields | changes)


# Two episodes as a D4RL file has them: rows 100, 101 are cut, rows 103, 104 die. True
# next observations of the ends are 102 and 105.
FILE = {
    "observations": np.array([[100.0], [101], [103], [104]], np.float32),
    "next_observations": np.array([[101.0], [102], [104], [105]], np.float32),
    "actions": np.full((4, 2), 0.5, np.float32),
    "rewards": np.arange(1, 5, dtype=np.float32),
    "terminals": np.array([False, False, False, True]),
    "timeouts": np.array([False, True, False, False]),
    "infos/qpos": np.arange(8.0).reshape(4, 2),
    "infos/qvel": np.ones((4, 2)),
}


def write_hdf5(path, columns):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            file[key] = value
    return str(path)


def without(*keys):
    return {key: value for key, value in FILE.items() if key not in keys}


def test_hdf5_with_everything(tmp_path):
    path = write_hdf5(tmp_path / "hopper_random-v2.hdf5", FILE)
    found = d4rl.load_hdf5(config(path=path))
    assert found.next_observation[:, 0].tolist() == [101, 102, 104, 105]
    assert found.valid_next.all()
    assert found.terminal.tolist() == [False, False, False, True]
    assert found.timeout.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(found.extras["qpos"], FILE["infos/qpos"])
    assert found.info == dict(name="hopper_random-v2", env_id="Hopper-v4", version="v2")
    assert trajectories.dataset(found, config()).info["return_max"] == 7
    # The config's default name is that of another data set and must not stick.
    named = d4rl.load_hdf5(config(path=path, name="Walker2d-v4/medium"))
    assert named.info["name"] == "hopper_random-v2"


def test_hdf5_without_next_observations(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", without("next_observations"))
    found = d4rl.load_hdf5(config(path=path))
    assert found.observation[:, 0].tolist() == [100, 103, 104]
    assert found.valid_next.tolist() == [True, True, False]
    assert found.info["env_id"] == found.info["version"] == ""


def test_hdf5_without_timeouts(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", without("timeouts", "infos/qvel"))
    one = d4rl.load_hdf5(config(path=path))
    assert trajectories.lengths(one).tolist() == [4]
    two = d4rl.load_hdf5(config(path=path, time_limit=2))
    # The death at the limit cannot be told from the limit, and counts as the limit.
    assert two.timeout.tolist() == [False, True, False, True]
    assert not two.terminal.any() and set(two.extras) == {"qpos"}


def test_hdf5_missing_keys_are_named_with_those_found(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", without("rewards", "terminals"))
    with pytest.raises(UserError, match="lacks rewards, terminals; found actions,"):
        d4rl.load_hdf5(config(path=path))


def test_hdf5_rows_that_do_not_agree(tmp_path):
    columns = FILE | {"rewards": np.zeros(3, np.float32)}
    path = write_hdf5(tmp_path / "a.hdf5", columns)
    with pytest.raises(UserError, match="equally many rows.*reward 3"):
        d4rl.load_hdf5(config(path=path))


def long_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in FILE.items():
            file.create_dataset(
                key, data=np.repeat(value, 500, axis=0), compression="gzip"
            )
    return path.read_bytes()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_hdf5_bad_files(tmp_path):
    whole = long_hdf5(tmp_path / "whole.hdf5")
    middle = len(whole) // 2
    assert len(d4rl.load_hdf5(config(path=str(tmp_path / "whole.hdf5"))).reward) == 2000
    bad = {
        "pointer": (POINTER, "Git LFS pointer"),
        "text": (b"not found", "no readable HDF5"),
        "empty": (b"", "no readable HDF5"),
        "truncated": (whole[:middle], "no readable HDF5"),
        "zeroed": (whole[:4000] + bytes(len(whole) - 4000), "no readable HDF5"),
    }
    for name, (content, message) in bad.items():
        path = tmp_path / f"{name}.hdf5"
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            d4rl.load_hdf5(config(path=str(path)))
        assert "\n" not in str(caught.value) and name in str(caught.value)
    for path in (tmp_path / "absent.hdf5", tmp_path, ""):
        with pytest.raises(UserError, match="data.path=.* cannot be read"):
            d4rl.load_hdf5(config(path=str(path)))


@pytest.mark.parametrize("stem", ["hopper_medium_replay-v2", "hopper-medium-replay-v2"])
def test_other_data_under_the_name_of_d4rl_are_refused(stem, tmp_path):
    path = write_hdf5(tmp_path / f"{stem}.hdf5", FILE)
    with pytest.raises(UserError, match="rows 4, D4RL's hopper-medium-replay-v2 has"):
        d4rl.load_hdf5(config(path=path))


def test_known_sizes_accept_the_real_ones(monkeypatch, tmp_path):
    monkeypatch.setitem(d4rl.KNOWN, ("hopper", "medium"), (4, 5.1))  # mean return 5
    path = write_hdf5(tmp_path / "hopper_medium-v2.hdf5", FILE)
    assert len(d4rl.load_hdf5(config(path=path)).reward) == 4
    monkeypatch.setitem(d4rl.KNOWN, ("hopper", "medium"), (4, 6))
    with pytest.raises(UserError, match="mean return 5, .* has 6"):
        d4rl.load_hdf5(config(path=path))


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
    assert found.info == dict(name="b", env_id="", version="")


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
    assert found.timeout.tolist() == [i == 3 for i in range(8)]
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
    raw = npz.load(config(path=path))
    assert raw.terminal.sum() == 2
    with pytest.raises(UserError, match="data.clip_actions=True"):
        trajectories.dataset(raw, config())


def test_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.hdf5").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[data\]'"):
        d4rl.load_hdf5(config(path=str(tmp_path / "a.hdf5")))


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
