"""What every method must pass, found through the configs: nothing to add for a new one.

Each name in METHODS is taken from the plainest config with a stage that runs it, small,
on the toy system, on a few simulated users or in the toy game for teams. A few of each
family stand for all in the quick run; the slow one has them all.
"""

import functools
import importlib
import json
import tempfile
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxrec import evaluators, experiment, program, seeds, sharding, train
from jaxrec.data import loader
from jaxrec.errors import Interrupted
from jaxrec.methods import METHODS
from jaxrec.types import Method

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("__init__", "behaviour")
)


QUICK_METHODS = ("bc", "world_transformer", "sa2c", "vsknn", "qmix")
QUICK_CONFIGS = ("otto", "td3bc")


def named(names, quick):
    """Parameters; those that others stand for are slow."""
    assert set(quick) <= set(names)
    return [
        pytest.param(name, marks=() if name in quick else pytest.mark.slow)
        for name in names
    ]


@functools.cache
def data_dir():
    """Simulated users write their log once for all tests."""
    return tempfile.mkdtemp(prefix="jaxrec-ladder-")


def smoke(name) -> ConfigDict:
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    if "rows" in config.data:
        config.data.source, config.data.rows = "toy", 1_000
    if "settings" in config.data:
        config.data.update(source="meeting", name="two_on_5", settings="")
    config.eval.users = 20
    config.mesh = dict(data=1, model=1)
    for stage in config.stages:
        config[stage].batch_size = 32
    return config


@functools.cache
def plainest():
    """The configs, those of the fewest stages first."""
    return sorted(map(smoke, CONFIGS), key=lambda config: len(config.stages))


@functools.cache
def stages_of(method):
    """(config, stage's name) of the plainest config that runs the method."""
    for config in plainest():
        for stage in config.stages:
            if config[stage].method == method or (
                method in config[stage] and len(config.stages) == 1
            ):
                return config, stage
    raise LookupError(f"no config runs the method {method!r}")


def build(method, mesh=(1, 1), num_seeds=1):
    """The stage that runs the method, and states of the stages that it uses."""
    config, wanted = stages_of(method)
    config = ConfigDict(config)
    config.num_seeds = num_seeds
    config.data.data_dir = data_dir()
    for stage in config.stages:
        config[stage].mix.fraction = 0.0  # artefacts have their own tests
    config = experiment.resolve(config)
    stages, states = {}, {}
    for name in config.stages:
        stage = experiment.build(config, name, sharding.make_mesh(*mesh), stages)
        earlier = {used: states[used] for used in stage.config.uses}
        if name == wanted:
            return stage, earlier
        stages[name] = stage
        states[name] = train.initial_state(stage, earlier)
    raise AssertionError


def split_items(stage, earlier):
    """The stage with what is stored for each item split, if it has such a table."""
    leaves = jax.tree_util.tree_leaves_with_path(train.abstract_state(stage, earlier))
    if any("item_table" in sharding.path_name(path) for path, _ in leaves):
        return stage._replace(rules=("items",))
    return stage


def run(stage, earlier, folder, steps, stop_at=None):
    """Train `steps`; the `stop_at`-th look for a signal, one every 5, finds one."""
    section = ConfigDict(stage.config.to_dict())
    section.update(steps=steps, log_every=5, eval_every=0, checkpoint_every=0)
    section.steps_per_call = 5
    looks = iter(range(1, 10**6))
    asked = lambda: 15 if next(looks) == stop_at else 0  # noqa: E731
    return train.train(stage._replace(config=section), folder, {}, earlier, asked)[0]


def test_every_method_has_a_config():
    for method in METHODS:
        assert stages_of(method)


@pytest.mark.parametrize("method", named(METHODS, QUICK_METHODS))
def test_steps_are_finite_and_one_batch_is_learnt(method):
    stage, earlier = build(method)
    state = train.initial_state(stage, earlier)
    before = state
    batch = loader.host_batch(stage.dataset, 32, np.uint32(0), 0)

    @jax.jit
    def steps(state):
        def body(state, key):
            return stage.method.train_step(state, batch, key)

        return jax.lax.scan(body, state, jax.random.split(jax.random.key(0), 60))

    state, metrics = steps(state)
    assert int(state.step) == 60
    chex.assert_shape(list(metrics.values()), (60,))
    chex.assert_tree_all_finite(metrics)
    if state.opt_state is None:
        return  # it counts, and has counted
    loss = np.asarray(metrics["loss"])
    assert loss[-10:].mean() < loss[:3].mean()
    chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
    moved = [
        bool((np.asarray(a) != np.asarray(b)).any())
        for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params))
    ]
    assert np.mean(moved) > 0.5


@pytest.mark.parametrize("method", named(METHODS, QUICK_METHODS))
def test_resume_is_exact(tmp_path, method):
    stage, earlier = build(method)
    whole = run(stage, earlier, tmp_path / "whole", 20)
    with pytest.raises(Interrupted, match="saved at step 10"):
        run(stage, earlier, tmp_path / "parts", 20, stop_at=2)
    parts = run(stage, earlier, tmp_path / "parts", 20)
    chex.assert_trees_all_equal(whole, parts)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("train/loss", 0.0) for line in lines]  # some count


@pytest.mark.parametrize("method", named(METHODS, ("bc",)))
def test_meshes_agree(tmp_path, monkeypatch, method):
    """20 steps on four meshes, and every array is split as the rules say.

    Adam makes full steps of gradients that are zero but for the rounding of sums, which
    meshes do in other orders: its epsilon is above that.
    """
    monkeypatch.setattr(optax, "adam", functools.partial(optax.adam, eps=1e-4))
    one = run(*build(method), tmp_path / "one", 20)
    for mesh in ((8, 1), (4, 2), (2, 4)):
        stage, earlier = build(method, mesh)
        stage = split_items(stage, earlier)
        folder = tmp_path / "x".join(map(str, mesh))
        many = run(stage, earlier, folder, 20)
        for name in ("params", "target_params"):
            ours, theirs = getattr(one, name), getattr(many, name)
            chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            losses(folder), losses(tmp_path / "one"), rtol=1e-4, atol=1e-4
        )
        asked = train.abstract_state(stage, earlier)
        for leaf, shape in zip(jax.tree.leaves(many), jax.tree.leaves(asked)):
            assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_on_other_meshes(tmp_path, monkeypatch, method):
    """8x1, then 4x2 with what the rules split, then one device: as on one alone."""
    monkeypatch.setattr(optax, "adam", functools.partial(optax.adam, eps=1e-4))
    one = run(*build(method), tmp_path / "one", 20)
    for mesh, stop_at in (((8, 1), 1), ((4, 2), 2)):
        stage, earlier = build(method, mesh)
        stage = split_items(stage, earlier)
        with pytest.raises(
            Interrupted, match=f"saved at step {5 if mesh[1] == 1 else 15}"
        ):
            run(stage, earlier, tmp_path / "moved", 20, stop_at)
    moved = run(*build(method), tmp_path / "moved", 20)
    for name in ("params", "target_params"):
        ours, theirs = getattr(one, name), getattr(moved, name)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        losses(tmp_path / "moved"), losses(tmp_path / "one"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_seeds_in_one_program_equal_separate_runs(tmp_path, method):
    stage, earlier = build(method, num_seeds=2)
    many = run(stage, earlier, tmp_path / "many", 10)
    for number in range(2):
        alone, before = build(method)
        alone = alone._replace(seed=stage.seed + number)
        before = {name: seeds.pick(state, number, 2) for name, state in earlier.items()}
        one = run(alone, before, tmp_path / str(number), 10)
        picked = seeds.pick(many, number, 2)
        chex.assert_trees_all_close(one.params, picked.params, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("name", named(CONFIGS, QUICK_CONFIGS))
def test_smoke_form_of_every_config(tmp_path, name):
    config = smoke(name)
    config.data.data_dir = data_dir()
    for stage in config.stages:
        config[stage].update(steps=20, log_every=10, eval_every=0, steps_per_call=10)
        config[stage].checkpoint_every = 0
        config[stage].evals = tuple(e for e in config[stage].evals if e != "simulator")
    summary = experiment.run(config, tmp_path / "run")
    assert set(summary["stages"]) == set(config.stages)
    for stage in summary["stages"].values():
        assert np.isfinite(stage["last"]["train/loss"])


def test_every_method_has_the_fields_that_the_loop_asks_for():
    for method in QUICK_METHODS:
        made = build(method)[0].method
        assert type(made)._fields[: len(Method._fields)] == Method._fields


def test_all_tables_hold_callables():
    assert all(map(callable, METHODS.values()))
    assert all(map(callable, evaluators.EVALS.values()))
    assert program.steps_per_call(smoke("td3bc").train) == 50
