"""HDF5 files: real small ones, and bad ones."""

import sys

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
    assert found.info["env_id"] == "" and len(found.info["version"]) == 8


def test_hdf5_without_timeouts(tmp_path, capsys):
    """The next observations tell that row 1 is cut: 102 is not 103."""
    path = write_hdf5(tmp_path / "a.hdf5", without("timeouts", "infos/qvel"))
    one = d4rl.load_hdf5(config(path=path))
    assert trajectories.lengths(one).tolist() == [2, 2]
    assert one.terminal.tolist() == [False, False, False, True]
    assert one.valid_next.all() and set(one.extras) == {"qpos"}
    assert "a: cut at 1 rows more" in capsys.readouterr().err
    two = d4rl.load_hdf5(config(path=path, time_limit=2))
    # The death at the limit cannot be told from the limit, and counts as the limit.
    assert two.timeout.tolist() == [False, True, False, True]
    assert not two.terminal.any()


@pytest.mark.parametrize("form", ["hdf5", "npz"])
def test_resets_that_nothing_tells_are_found_or_refused(form, tmp_path):
    """Two episodes of 1000 rows, cut by the clock: no row may lead into the next."""
    length = 1000
    observation = np.arange(2 * length, dtype=np.float32)[:, None] + 1
    columns = dict(observations=observation, actions=np.zeros((2 * length, 1)))
    columns |= dict(rewards=np.ones(2 * length), terminals=np.zeros(2 * length, bool))

    def load(stem, **changes):
        path = tmp_path / f"{stem}.{form}"
        if form == "npz":
            np.savez(path, **columns)
            return npz.load(config(path=str(path), **changes))
        return d4rl.load_hdf5(config(path=write_hdf5(path, columns), **changes))

    known = "hopper_bar-v2" if form == "hdf5" else "mine_Hopper-v4"
    for found in (
        load(known),
        load("a", env_id="Walker2d-v4"),
        load("b", time_limit=length),
    ):
        assert trajectories.lengths(found).tolist() == [length - 1] * 2
        assert found.valid_next.all() and not found.terminal.any()
        assert (found.next_observation == found.observation + 1).all()
    with pytest.raises(UserError, match=r"^c: neither.*data.time_limit \(1000") as e:
        load("c")
    assert "\n" not in str(e.value)


def test_hdf5_missing_keys_are_named_with_those_found(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", without("rewards", "terminals"))
    with pytest.raises(UserError, match="lacks rewards, terminals; found actions,"):
        d4rl.load_hdf5(config(path=path))
    group = without("rewards") | {"rewards/0": FILE["rewards"]}
    path = write_hdf5(tmp_path / "b.hdf5", group)
    with pytest.raises(UserError, match="b.hdf5 lacks rewards; found actions,"):
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
    with pytest.raises(UserError, match="data.path='~nobody-here/a.hdf5'"):
        d4rl.load_hdf5(config(path="~nobody-here/a.hdf5"))
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


def test_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.hdf5").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[data\]'"):
        d4rl.load_hdf5(config(path=str(tmp_path / "a.hdf5")))
