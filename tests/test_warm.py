"""Parameters of another run, or the mean of several, in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import RULES, make_stage

from jaxrec import checkpoint, train, warm
from jaxrec.types import TrainState, UserError


def saved_at(folder, *weights):
    """A folder of a stage with checkpoints of the probe's parameters."""
    for step, value in enumerate(weights, 1):
        params = {"table": {"weights": jnp.full((16, 8), value)}}
        state = TrainState(jnp.int32(step), params, {"mu": params})
        with checkpoint.opened(folder / "checkpoints") as saved:
            checkpoint.save(saved, step, state, {}).result()
    return folder


@pytest.mark.parametrize("mesh, rules", [((1, 1), ()), ((4, 2), RULES)])
def test_the_newest_parameters_are_taken_and_the_rest_is_fresh(tmp_path, mesh, rules):
    saved_at(tmp_path / "a", 3.0, 1.0)
    saved_at(tmp_path / "b", 2.0)
    for num_seeds, path, expected in ((1, "a", 1.0), (2, "a,b", 1.5)):
        path = ",".join(str(tmp_path / part) for part in path.split(","))
        begin = warm.beginning("train", dict(path=path, pattern=""))
        stage = make_stage(mesh=mesh, rules=rules, num_seeds=num_seeds)
        fresh = train.initial_state(stage, {})
        state = train.initial_state(stage._replace(begin=begin), {})
        table = state.params["table"]["weights"]
        assert table.sharding == fresh.params["table"]["weights"].sharding
        np.testing.assert_array_equal(table, np.full(table.shape, expected))
        rest = fresh.replace(params=None), state.replace(params=None)
        jax.tree.map(np.testing.assert_array_equal, *rest)


def test_a_pattern_chooses_and_targets_follow():
    tree = {"actor": jnp.zeros(2), "critic": jnp.zeros(2)}
    state = TrainState(jnp.int32(0), tree, None, {"critic": jnp.zeros(2)})
    found = {"actor": np.ones(2), "critic": np.full(2, 2.0), "other": np.ones(9)}
    state = warm.start(state, found, "critic")
    np.testing.assert_array_equal(state.params["actor"], np.zeros(2))
    np.testing.assert_array_equal(state.params["critic"], np.full(2, 2.0))
    np.testing.assert_array_equal(state.target_params["critic"], np.full(2, 2.0))
    with pytest.raises(UserError, match="'encoder' finds no .* actor, critic, other"):
        warm.start(state, found, "encoder")
    found["actor"] = np.ones(3)
    with pytest.raises(UserError, match=r"actor is \[3\] there, \[2\] here: choose"):
        warm.start(state, found)


def test_what_cannot_be_taken_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing/checkpoints is not there: name the"):
        warm.parameters(str(tmp_path / "nothing"))
    saved_at(tmp_path / "a", 1.0)
    with pytest.raises(UserError, match=f"stage of a run, such as {tmp_path}/a$"):
        warm.parameters(str(tmp_path))
    with pytest.raises(UserError, match="a folder is missing between commas"):
        warm.parameters(f"{tmp_path}/a,")
    state = TrainState(jnp.int32(0), {"other": jnp.zeros(2)}, None)
    with checkpoint.opened(tmp_path / "b" / "checkpoints") as saved:
        checkpoint.save(saved, 1, state, {}).result()
    with pytest.raises(UserError, match="hold different parameters"):
        warm.parameters(f"{tmp_path}/a,{tmp_path}/b")
