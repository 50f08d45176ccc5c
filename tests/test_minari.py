"""Minari data sets, written by Minari itself, and bad ones."""

import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.data import minari, trajectories
from jaxrec.types import UserError


def config(**changes):
    fields = dict(name="", path="", rows=0, seed=0, data_dir="", time_limit=0)
    fields |= dict(valid_fraction=0.0, top=1.0, window=0)
    return ConfigDict(fields | changes)


@pytest.fixture
def minari_home(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def episode_buffer(first, length, died=False, cut=False, dictionary=False):
    from minari.data_collector.episode_buffer import EpisodeBuffer

    number = np.arange(first, first + length + 1, dtype=np.float64)[:, None]
    observation = dict(b=number, a=-number) if dictionary else number
    return EpisodeBuffer(
        observations=observation,
        actions=np.full((length, 1), 0.5, np.float32),
        rewards=np.arange(length, dtype=np.float64),
        terminations=np.arange(length) == (length - 1 if died else -1),
        truncations=np.arange(length) == (length - 1 if cut else -1),
        infos=dict(qpos=np.repeat(number, 2, axis=1)),
    )


def make_minari(name, episodes, action_space=None, observation_space=None, **options):
    import gymnasium as gym
    import minari as minari_package

    wide = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    return minari_package.create_dataset_from_buffers(
        name,
        episodes,
        action_space=action_space or gym.spaces.Box(-1, 1, (1,)),
        observation_space=observation_space or wide,
        **dict(author="a", author_email="b", code_permalink="c", algorithm_name="d"),
        **options,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_death_cut_and_unfinished_episodes(minari_home):
    episodes = [
        episode_buffer(100, 3, died=True),
        episode_buffer(200, 2, cut=True),
        episode_buffer(300, 2),
    ]
    make_minari("mujoco/hopper/test-v0", episodes)
    found = minari.load(config(name="mujoco/hopper/test-v0"))
    assert found.observation[:, 0].tolist() == [100, 101, 102, 200, 201, 300, 301]
    np.testing.assert_array_equal(found.next_observation, found.observation + 1)
    assert np.flatnonzero(found.terminal).tolist() == [2]
    assert np.flatnonzero(found.timeout).tolist() == [4, 6]
    assert found.valid_next.all()
    assert found.extras["qpos"][:, 1].tolist() == found.observation[:, 0].tolist()
    assert found.info == dict(name="mujoco/hopper/test-v0", env_id="", version="v0")
    assert trajectories.dataset(found, config()).info["num_episodes"] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_dict_observations_env_and_scores(minari_home):
    import gymnasium as gym

    space = gym.spaces.Dict(
        {key: gym.spaces.Box(-np.inf, np.inf, (1,), np.float64) for key in "ba"}
    )
    data = make_minari(
        "maze/test-v3",
        [episode_buffer(0, 2, cut=True, dictionary=True)],
        observation_space=space,
    )
    data.storage.update_metadata(dict(ref_min_score=1.5, ref_max_score=9.0))
    found = minari.load(config(name="maze/test-v3"))
    flat = gym.spaces.flatten(space, dict(b=np.array([1.0]), a=np.array([-1.0])))
    assert found.observation[1].tolist() == flat.tolist()
    scores = found.info["ref_min_score"], found.info["ref_max_score"]
    assert scores == (1.5, 9.0) and found.info["version"] == "v3"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_env_id_is_kept(minari_home):
    pytest.importorskip("mujoco")
    import gymnasium as gym

    make_minari(
        "mujoco/pendulum/test-v0",
        [episode_buffer(0, 2, cut=True)],
        env=gym.spec("InvertedPendulum-v5"),
    )
    found = minari.load(config(name="mujoco/pendulum/test-v0"))
    assert found.info["env_id"] == "InvertedPendulum-v5"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_bad_data(minari_home):
    import gymnasium as gym

    with pytest.raises(UserError, match="here: none.*minari download mujoco/x/y-v0"):
        minari.load(config(name="mujoco/x/y-v0"))
    episodes = [episode_buffer(0, 2, cut=True)]
    make_minari("test/wide-v0", episodes, action_space=gym.spaces.Box(-2, 2, (1,)))
    make_minari("test/discrete-v0", episodes, action_space=gym.spaces.Discrete(3))
    for name in ("test/wide-v0", "test/discrete-v0"):
        with pytest.raises(UserError, match="actions must be a Box in"):
            minari.load(config(name=name))
    image = gym.spaces.Box(0, 1, (1, 1), np.float64)
    make_minari("test/image-v0", episodes, observation_space=image)
    with pytest.raises(UserError, match="observations must be vectors"):
        minari.load(config(name="test/image-v0"))
    with pytest.raises(UserError, match="here: test/discrete-v0.*test/image-v0"):
        minari.load(config(name="test/other-v0"))
    make_minari("test/damaged-v0", episodes)
    data = minari_home / "test" / "damaged-v0" / "data"
    whole = (data / "main_data.hdf5").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"version https://git-lfs"):
        (data / "main_data.hdf5").write_bytes(content)
        with pytest.raises(UserError, match="damaged") as caught:
            minari.load(config(name="test/damaged-v0"))
        assert "\n" not in str(caught.value)
    (data / "main_data.hdf5").unlink()
    with pytest.raises(UserError, match="Minari cannot read 'test/damaged-v0'"):
        minari.load(config(name="test/damaged-v0"))
    (data / "metadata.json").write_text("{")
    with pytest.raises(UserError, match="Minari cannot read 'test/damaged-v0'"):
        minari.load(config(name="test/damaged-v0"))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[data\]'"):
        minari.load(config(name="test/any-v0"))
