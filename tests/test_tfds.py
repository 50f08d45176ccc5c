"""D4RL through tensorflow-datasets: the wrong last observation, the cache, bad data."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.data import d4rl, trajectories
from jaxrec.types import UserError


def config(**changes):
    fields = dict(name="", path="", rows=0, seed=0, data_dir="", time_limit=0)
    fields |= dict(valid_fraction=0.0, top=1.0, window=0)
    return ConfigDict(fields | changes)


def rlds(first, last, died, appended=None, dtype=np.float32):
    """An episode as the builders make it: `appended` is the observation they add."""
    observation = list(range(first, last + 1)) + [appended] * (appended is not None)
    real = np.arange(len(observation)) < last + 1 - first
    ends = np.arange(len(observation)) == len(observation) - 1
    steps = dict(
        observation=np.array(observation, dtype)[:, None],
        action=np.where(real[:, None], 0.5, 0).astype(dtype),
        reward=np.where(real, 1, 0).astype(dtype),
        discount=np.ones(len(observation), dtype),
        is_first=np.arange(len(observation)) == 0,
        is_last=ends,
        is_terminal=ends & died,
        infos=dict(qpos=np.array(observation, np.float64)[:, None]),
    )
    return dict(steps=steps, algorithm="sac")


def by_step(episode):
    """The same episode as one dict a step, as data sources yield it."""
    steps = episode["steps"]
    flat = {k: v for k, v in steps.items() if k != "infos"}
    for i in range(len(steps["reward"])):
        yield {k: v[i] for k, v in flat.items()} | dict(
            infos=dict(qpos=steps["infos"]["qpos"][i])
        )


@pytest.mark.parametrize("as_steps", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tfds_wrong_last_observation_is_never_used(as_steps, dtype):
    """Builders append 105, the last of the file, to every episode (spec 4.1)."""
    episodes = [
        rlds(100, 101, died=False, appended=105, dtype=dtype),
        rlds(103, 104, died=True, appended=105, dtype=dtype),
    ]
    if as_steps:
        episodes = [dict(steps=by_step(episode)) for episode in episodes]
    found = d4rl.from_rlds(episodes, dict(name="x"))
    assert found.observation[:, 0].tolist() == [100, 103, 104]
    assert found.next_observation[found.valid_next, 0].tolist() == [101, 104]
    assert 105 not in found.next_observation
    assert found.terminal.tolist() == [False, False, True]
    assert found.timeout.tolist() == [True, False, False]
    assert found.valid_next.tolist() == [True, True, False]
    assert found.extras["qpos"][:, 0].tolist() == [100, 103, 104]
    train = trajectories.dataset(found, config()).train
    assert train["terminal"].tolist() == [0, 0, 1]
    assert {column.dtype.name for column in train.values()} == {"float32", "int32"}


def test_tfds_v0_has_no_appended_step_at_a_timeout():
    found = d4rl.from_rlds(
        [rlds(0, 3, died=False), rlds(10, 11, died=True, appended=0)]
    )
    assert found.observation[:, 0].tolist() == [0, 1, 2, 10, 11]
    assert found.next_observation[found.valid_next, 0].tolist() == [1, 2, 3, 11]
    assert found.timeout.tolist() == [False, False, True, False, False]


def test_tfds_without_episodes():
    with pytest.raises(UserError, match="no episodes"):
        d4rl.from_rlds([])


def test_a_misspelt_builder_is_told_before_packages_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="did you mean d4rl_mujoco_hopper"):
        d4rl.load(config(name="d4rl_mujoco_hoper/v2-medium", data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="did you mean d4rl_mujoco_ant/v2-medium,"):
        d4rl.load(config(name="d4rl_mujoco_ant/v2-medum", data_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["d4rl_mujoco_hopper", "hopper-medium-v2", "d4rl_mujoco_hopper/medium", ""]
)
def test_tfds_config_must_be_named(name, tmp_path):
    with pytest.raises(UserError, match="name the builder and its config.*v0-expert"):
        d4rl.load(config(name=name, data_dir=str(tmp_path)))


def test_tfds_without_tensorflow_names_the_package(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")  # before TensorFlow is hidden from it
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # import raises ImportError
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[tensorflow\]'"):
        d4rl.load(
            config(
                name="d4rl_mujoco_hopper/v2-medium",
                path=str(tmp_path / "tfds"),
                data_dir=str(tmp_path / "cache"),
            )
        )
    assert not list(tmp_path.glob("cache/*"))  # nothing half-made is left


def prepare(folder, file_format, episodes):
    """A prepared data set in the files of tensorflow-datasets."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    def vector(dtype):
        return tfds.features.Tensor(shape=(1,), dtype=dtype)

    step = dict(
        observation=vector(np.float32),
        action=vector(np.float32),
        reward=np.float32,
        is_terminal=np.bool_,
        infos=dict(qpos=vector(np.float64)),
    )
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(dict(steps=tfds.features.Dataset(step)))
    features.save_config(folder)
    split = dict(
        name="train",
        filepathTemplate="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        numBytes="1",
        shardLengths=[str(len(episodes))],
    )
    info = dict(
        name=folder.parts[-3],
        configName=folder.parts[-2],
        version=folder.parts[-1],
        fileFormat=file_format,
        splits=[split],
    )
    (folder / "dataset_info.json").write_text(json.dumps(info))
    records = []
    for episode in episodes:
        example, steps = tf_example_pb2.Example(), episode["steps"]
        feature = example.features.feature
        for name in ("observation", "action", "reward"):
            feature[f"steps/{name}"].float_list.value.extend(steps[name].reshape(-1))
        qpos = steps["infos"]["qpos"].reshape(-1)
        feature["steps/infos/qpos"].float_list.value.extend(qpos)
        terminal = steps["is_terminal"].astype(int)
        feature["steps/is_terminal"].int64_list.value.extend(terminal)
        records.append(example.SerializeToString())
    file = str(folder / f"{info['name']}-train.{file_format}-00000-of-00001")
    if file_format == "tfrecord":
        import tensorflow as tf

        writer = tf.io.TFRecordWriter(file)
    else:
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(file, "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds_prepared_data_are_read_and_cached(file_format, tmp_path):
    """array_record needs no TensorFlow; tfrecord, the default, does, the first time."""
    pytest.importorskip("tensorflow_datasets")
    if file_format == "tfrecord" and not importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is not installed: pip install 'jaxrec[tensorflow]'")
    folder = tmp_path / "tfds" / "d4rl_mujoco_hopper" / "v2-random" / "1.2.0"
    episodes = [rlds(100, 101, False, 105), rlds(103, 104, True, 105)]
    prepare(folder, file_format, episodes)
    here = config(
        name="d4rl_mujoco_hopper/v2-random",
        path=str(tmp_path / "tfds"),
        data_dir=str(tmp_path / "cache"),
    )
    found = d4rl.load(here)
    assert found.observation[:, 0].tolist() == [100, 103, 104]
    assert found.next_observation[found.valid_next, 0].tolist() == [101, 104]
    assert found.terminal.tolist() == [False, False, True]
    assert found.info == dict(
        name="d4rl_mujoco_hopper/v2-random",
        env_id="Hopper-v4",
        version="v2",
        builder_version="1.2.0",
    )
    for file in folder.iterdir():
        file.unlink()  # the second time the cache is enough
    again = d4rl.load(here)
    assert isinstance(again.observation, np.memmap)
    np.testing.assert_array_equal(again.observation, found.observation)
    assert again.info == found.info


def test_tfds_damaged_data_are_a_user_error(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / "tfds" / "d4rl_mujoco_hopper" / "v2-random" / "1.2.0"
    prepare(folder, "array_record", [rlds(100, 101, False, 105)])
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="tensorflow-datasets cannot give") as caught:
        d4rl.load(
            config(
                name="d4rl_mujoco_hopper/v2-random",
                path=str(tmp_path / "tfds"),
                data_dir=str(tmp_path / "cache"),
            )
        )
    assert "\n" not in str(caught.value)
