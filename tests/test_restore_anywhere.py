"""A checkpoint of one mesh goes on on another, and a run may change it midway."""

import json

import chex
import jax
import pytest
from test_experiment import config
from test_train import RULES, lines, make_stage, run

from jaxrec import checkpoint, experiment, runs, train, workdir
from jaxrec.errors import Interrupted, UserError


def restored(stage, folder):
    """The last checkpoint, placed as the stage's mesh and rules say."""
    with checkpoint.opened(folder / "checkpoints") as saved:
        step = checkpoint.latest_step(saved)
        return checkpoint.restore(saved, step, train.abstract_state(stage, {}))[0]


def test_a_checkpoint_is_the_same_on_every_mesh(tmp_path):
    """8x1, then 4x2 with the table split, then one device: bit for bit."""
    first = train.initial_state(make_stage(mesh=(8, 1)), {})
    with checkpoint.opened(tmp_path / "checkpoints") as saved:
        checkpoint.save(saved, 1, first, {}).result()
    for mesh, rules in (((4, 2), RULES), ((1, 1), ())):
        found = restored(make_stage(mesh=mesh, rules=rules), tmp_path)
        chex.assert_trees_all_equal(jax.device_get(first), jax.device_get(found))
        table = found.params["table"]["weights"]
        assert len(table.sharding.device_set) == mesh[0] * mesh[1]
        assert table.addressable_shards[0].data.shape[-1] == 8 // mesh[1]


@pytest.mark.slow
def test_a_run_goes_on_on_other_meshes(tmp_path):
    """8x1, then 4x2 with the table split, then one device: as on one, to rounding."""
    whole = run(make_stage(), tmp_path / "whole")
    folder, split = tmp_path / "moved", make_stage(mesh=(4, 2), rules=RULES)
    with pytest.raises(Interrupted, match="saved at step 25 of 60"):
        run(make_stage(mesh=(8, 1)), folder, 5)
    with pytest.raises(Interrupted, match="saved at step 50 of 60"):
        run(split, folder, 5)
    one = run(make_stage(), folder)
    assert len(one.params["table"]["weights"].sharding.device_set) == 1
    chex.assert_trees_all_close(one, whole, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(lines(folder), lines(tmp_path / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_what_is_being_saved_outlives_the_next_update(tmp_path):
    """Which takes the buffers of the state for its own."""
    stage = make_stage(mesh=(4, 2), rules=RULES)
    state = train.initial_state(stage, {})
    before = jax.device_get(state)
    with checkpoint.opened(tmp_path / "checkpoints") as saved:
        saving = checkpoint.save(saved, 1, state, {})
        clear = lambda x: x ^ x if x.dtype == bool else x * 0  # noqa: E731
        update = jax.jit(lambda s: jax.tree.map(clear, s), donate_argnums=0)
        jax.block_until_ready(update(state))
        saving.result()
    chex.assert_trees_all_equal(before, jax.device_get(restored(stage, tmp_path)))


def test_the_mesh_is_no_part_of_what_a_run_is(tmp_path):
    """Unlike the seed, it may differ when the same command goes on."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text("{}\n")
    first = experiment.resolve(config(tmp_path))
    workdir.settle_config(tmp_path, first)
    changed = config(tmp_path, rules=(("table", ("model",)),))
    changed.mesh = dict(data=-1, model=2)
    workdir.settle_config(tmp_path, experiment.resolve(changed))
    path = tmp_path / "config.json"
    before = json.loads(path.read_text())
    before["mesh"].pop("time", None)  # runs of before there was one
    path.write_text(json.dumps(before))
    changed.mesh.time = 2
    workdir.settle_config(tmp_path, experiment.resolve(changed))
    after = before | dict(mesh=dict(data=4, model=2, time=1), rules=["items"])
    same = [runs.config_hash(runs.flat(x)) for x in (before, after)]
    assert same[0] == same[1]
    changed.seed = 1
    with pytest.raises(UserError, match="seed is 0 there, 1 here"):
        workdir.settle_config(tmp_path, experiment.resolve(changed))
