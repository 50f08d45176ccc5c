"""The demonstration of recall: both stages, their windows, and the picture."""

import pytest

from configs import recall as configs
from jaxrec import experiment, sharding


def stages(config, tmp_path):
    config.data.data_dir = str(tmp_path)
    config.mesh = dict(data=1, model=1)
    config = experiment.resolve(config)
    mesh = sharding.make_mesh(1, 1)
    return {name: experiment.build(config, name, mesh, {}) for name in config.stages}


def test_both_learn_from_the_same_users_with_other_windows(tmp_path):
    found = stages(configs.get_config("smoke"), tmp_path)
    mamba2, sasrec = (found[name].dataset for name in ("mamba2", "sasrec"))
    assert (mamba2.info["seq_len"], sasrec.info["seq_len"]) == (64, 20)
    assert mamba2.info["packed"] and "packed" not in sasrec.info
    for name in ("valid", "test"):
        assert (mamba2.drawn[name] == sasrec.drawn[name]).all()
        assert (mamba2.evals[name]["item"] == sasrec.evals[name]["item"]).all()
    with pytest.raises(ValueError, match="'smok' is unknown"):
        configs.get_config("smok")


def test_the_window_of_the_mamba_holds_the_longest_lag():
    config = configs.get_config()
    longest = max(config.data.lifelong.lags)
    assert config.sasrec.data.seq_len == 200
    assert longest + 2 <= config.mamba2.data.seq_len
    assert config.headline == f"test/lag_{longest}/hr@10"


@pytest.mark.slow
def test_the_smoke_form_draws_recall_by_lag(tmp_path):
    config = configs.get_config("smoke")
    config.data.data_dir = str(tmp_path)
    config.mesh = dict(data=1, model=1)
    for name in config.stages:
        config[name].update(steps=20, log_every=10, eval_every=0, checkpoint_every=0)
    summary = experiment.run(config, tmp_path / "run")
    for name in config.stages:
        last = summary["stages"][name]["last"]
        assert 0 <= last["test/lag_40/hr@10"] <= 1
    assert (tmp_path / "run" / "plots" / "recall_by_lag.png").stat().st_size > 10_000
