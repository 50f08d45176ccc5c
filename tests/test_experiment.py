"""Stages: refused together, finished apart, and what is lost is made again or named."""

import json
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxrec import defaults, experiment, report, workdir
from jaxrec.errors import Interrupted
from jaxrec.methods import METHODS, bc, iql, real_rows
from jaxrec.types import UserError


def config(data_dir, **changes):
    """Real rows of the toy system, half of each batch of a policy."""
    short = dict(steps=6, batch_size=8, log_every=3, eval_every=0, checkpoint_every=3)
    mix = dict(stage="rows", fraction=0.5)
    hparams = dict(bc=bc.HPARAMS | dict(widths=(8,)), iql=iql.HPARAMS)
    policy = defaults.stage("bc", hparams, mix=mix, **short)
    rows = defaults.stage("real_rows", dict(real_rows=real_rows.HPARAMS), steps=1)
    stages = dict(rows=rows, policy=policy)
    found = defaults.run("stages", stages, defaults.OFFLINE_RL_DATA)
    found.data.update(source="toy", rows=100, data_dir=str(data_dir))
    found.mesh = dict(data=1, model=1)
    found.update_from_flattened_dict(changes)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    experiment.run(config(folder.parent), folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def outcome(folder):
    """The last state and the metrics of the policy, without clocks."""
    lines = [json.loads(x) for x in (folder / "policy/metrics.jsonl").open()]
    state = ocp.load(folder / "policy/checkpoints/6")
    arrays = [np.asarray(x) for x in jax.tree.leaves(state)]
    return arrays, [{k: v for k, v in x.items() if k != "wall"} for x in lines]


def lose(folder):
    shutil.rmtree(folder)


def damage(folder):
    (folder / "reward.npy").write_bytes(b"short")


@pytest.mark.parametrize("harm", [lose, damage])
def test_an_artefact_is_produced_again_from_the_checkpoint(
    finished, copied, harm, capsys
):
    artefact = copied / "rows" / "artefact"
    before = (artefact / "observation.npy").read_bytes()
    harm(artefact)
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "policy")
    experiment.run(config(copied.parent), copied)
    assert "it is produced again from the checkpoint" in capsys.readouterr().err
    assert (artefact / "observation.npy").read_bytes() == before
    chex.assert_trees_all_equal(outcome(copied), outcome(finished))


def test_an_artefact_that_nobody_needs_any_more_stays_lost(copied):
    shutil.rmtree(copied / "rows" / "artefact")
    (copied / "summary.json").unlink()
    experiment.run(config(copied.parent), copied)
    assert not (copied / "rows" / "artefact").exists()


@pytest.mark.parametrize("name", ["summary.json", "policy/done.json"])
def test_a_torn_file_is_named_and_written_anew_when_it_is_deleted(
    finished, copied, name
):
    (copied / "summary.json").unlink()
    (copied / name).write_text('{"a')
    with pytest.raises(UserError, match=f"{name} is damaged .*: delete it") as caught:
        experiment.run(config(copied.parent), copied)
    assert "\n" not in str(caught.value)
    (copied / name).unlink()
    found = experiment.run(config(copied.parent), copied)
    chex.assert_trees_all_equal(outcome(copied), outcome(finished))
    whole = json.loads((finished / "summary.json").read_text())
    assert found["stages"]["policy"]["last"] == whole["stages"]["policy"]["last"]


@pytest.mark.parametrize("kept", [0, 1])
def test_lines_lost_after_the_checkpoint_are_named(copied, kept):
    (copied / "summary.json").unlink()
    (copied / "policy" / "done.json").unlink()
    path = copied / "policy" / "metrics.jsonl"
    path.write_text("".join(path.open().readlines()[:kept]))
    with pytest.raises(UserError, match=f"ends at step {3 * kept}, .* step 6 are lost"):
        experiment.run(config(copied.parent), copied)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"policy.bc.optim.name": "adamm"}, "'adamm' is unknown"),
        ({"policy.data.window": 5}, "bc learns from single transitions"),
        ({"policy.data.window": -3}, "data.window=-3: it must be 0 or more"),
        ({"rules": (("no_such_table", ("model",)),)}, "matches no parameter"),
        ({"policy.evals": ("simulator",), "data.env_id": "Ant-v4"}, "toy/linear of 4"),
        ({"data.env_id": "Hoper-v4"}, "unknown .* 'Hoper-v4': did you mean Hopper-v4"),
        (
            {"policy.evals": ("simulator",), "data.env_id": "Swimmer-v2"},
            "gymnasium cannot make 'Swimmer-v2'",
        ),
    ],
)
def test_what_a_later_stage_refuses_is_refused_before_the_first(
    tmp_path, changes, message
):
    if "data.env_id" in changes:
        pytest.importorskip("mujoco")
    with pytest.raises(UserError, match=message):
        experiment.run(config(tmp_path, **changes), tmp_path / "run")
    assert not list(tmp_path.glob("run/*/metrics.jsonl"))


def test_a_stage_that_produces_nothing_is_no_mix(tmp_path):
    changes = {"rows.method": "bc", "rows.bc": config("").policy.bc}
    broken = config(tmp_path)
    with broken.unlocked():
        broken.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match="'rows', whose method bc produces nothing"):
        experiment.run(broken, tmp_path / "run")


@pytest.mark.parametrize("num_seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_facts_about_what_was_produced_are_in_the_summary(
    tmp_path, monkeypatch, num_seeds
):
    def make(config, info):
        return real_rows.make(config, info)._replace(
            facts=lambda arrays, info: {
                "rows": float(len(arrays["reward"])),
                "mean": float(arrays["action"].mean()),
            }
        )

    monkeypatch.setitem(METHODS, "real_rows", make)
    changes = {"num_seeds": num_seeds, "rows.real_rows.sigma": 0.1}
    found = experiment.run(config(tmp_path, **changes), tmp_path / "run")
    produced = found["stages"]["rows"]["produced"]
    action = np.load(tmp_path / "run/rows/artefact/action.npy")
    means = action.reshape(num_seeds, -1).mean(1)
    np.testing.assert_allclose(np.ravel(produced["mean"]), means, rtol=1e-4)
    assert produced["rows"] == (100.0 if num_seeds == 1 else [100.0, 100.0])
    manifest = json.loads((tmp_path / "run/rows/artefact/manifest.json").read_text())
    assert manifest["facts"] == {"stage": "rows"} | produced
    assert "rows produced: rows 100, mean " in report.final_table(found)
    assert found["data"]["version"] == "1" and "reference" not in found["data"]


def test_differences_between_configs_are_told_by_importance(copied):
    changes = {"seed": 3, "policy.method": "iql", "policy.batch_size": 4}
    other = config(copied.parent, **changes | {"data.rows": 50, "policy.steps": 9})
    with pytest.raises(UserError) as caught:
        experiment.run(other, copied)
    text = str(caught.value)
    assert (
        "(policy.method is bc there, iql here; seed is 0 there, 3 here; data.rows is "
        "100 there, 50 here; and "
    ) in text
    assert "None" not in text and "more): use another --workdir" in text
    (copied / "config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json is damaged"):
        workdir.settle_config(copied, experiment.resolve(config(copied.parent)))


def test_only_the_same_signal_twice_stops_at_once():
    """Slurm sends SIGTERM at the limit when a run may already save after SIGUSR1."""
    with workdir.stop_signals() as stopped:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped() == signal.SIGUSR1
        with pytest.raises(Interrupted, match="stopped at once"):
            os.kill(os.getpid(), signal.SIGTERM)
