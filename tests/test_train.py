"""The loop: resume, streaming, seeds and meshes give one and the same run."""

import json
import shutil
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from jaxrec import program, seeds, sharding, train
from jaxrec.errors import Interrupted, UserError
from jaxrec.types import Dataset, Method, TrainState

TX = optax.adam(1e-2)


def probe_method():
    """Linear regression with noise from the key, a real though tiny method."""

    def init(key, batch, earlier):
        width = batch["x"].shape[-1]
        params = {"table": {"weights": 0.1 * jax.random.normal(key, (width, 8))}}
        return TrainState(jnp.zeros((), jnp.int32), params, TX.init(params))

    def train_step(state, batch, key):
        noise = 0.01 * jax.random.normal(key, batch["y"].shape)

        def loss_fn(params):
            guess = (batch["x"] @ params["table"]["weights"]).sum(-1)
            return jnp.mean((guess - batch["y"] - noise) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = TX.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": loss, "twice": 2 * loss}

    def produce(state, dataset, key):
        return {"x": np.ones(3)}

    return Method(init, train_step, produce=produce)


def probe_data(poison=False):
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    y = x @ np.linspace(-1, 1, 16, dtype=np.float32)
    if poison:
        y[:] = np.nan
    return Dataset({"x": x, "y": y.astype(np.float32)}, {}, {"name": "probe"})


def make_stage(steps=60, num_seeds=1, mesh=(1, 1), rules=(), seed=0, **fields):
    config = SimpleNamespace(
        steps=steps,
        batch_size=16,
        log_every=20,
        eval_every=30,
        checkpoint_every=15,
        steps_per_call=10,
    )
    stage = program.Stage(
        name="train",
        config=config,
        method=probe_method(),
        dataset=probe_data(),
        seed=seed,
        num_seeds=num_seeds,
        mesh=sharding.make_mesh(*mesh),
        rules=rules,
    )
    return stage._replace(**fields)


def weigh(state, key):
    return {"eval/norm": jnp.linalg.norm(state.params["table"]["weights"])}


def run(stage, folder, stop_at=None, evaluators=None):
    """Run the stage; the `stop_at`-th look for a signal finds one."""
    looks = iter(range(1, 10**6))

    def asked_to_stop():
        return 15 if stop_at is not None and next(looks) == stop_at else 0

    evaluators = {"weigh": weigh} if evaluators is None else evaluators
    return train.train(stage, folder, evaluators, {}, asked_to_stop)[0]


def lines(folder):
    found = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "wall"} for x in found]


def test_cadences_share_a_divisor():
    stage = make_stage()
    assert program.steps_per_call(stage.config) == 5
    stage.config.eval_every = 0
    stage.config.checkpoint_every = 0
    assert program.steps_per_call(stage.config) == 10
    # Cadences that never come round do not bind; the last call may be shorter.
    stage.config.steps, stage.config.log_every = 47, 1_001
    assert program.steps_per_call(stage.config) == 10
    sizes = [program.call_size(stage.config, step) for step in (0, 10, 17, 40)]
    assert sizes == [10, 10, 3, 7]
    stage.config.steps = 4
    assert program.steps_per_call(stage.config) == 4


@pytest.mark.parametrize("limit", [1 << 30, pytest.param(0, marks=pytest.mark.slow)])
def test_a_last_call_that_is_shorter_resumes_bit_for_bit(tmp_path, limit):
    """47 steps are nine calls of five updates and one of two."""
    fields = dict(steps=47, device_data_limit=limit)
    whole = run(make_stage(**fields), tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole")] == [20, 30, 40, 47]
    with pytest.raises(Interrupted, match="saved at step 45 of 47"):
        run(make_stage(**fields), tmp_path / "parts", 9)
    chex.assert_trees_all_equal(whole, run(make_stage(**fields), tmp_path / "parts"))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert int(whole.step) == 47
    # A longer run passes through the same states: calls are at the same places.
    longer = tmp_path / "longer"
    with pytest.raises(Interrupted, match="saved at step 45 of 60"):
        run(make_stage(device_data_limit=limit), longer, 9)
    one, two = ((tmp_path / x / "checkpoints" / "45") for x in ("parts", "longer"))
    chex.assert_trees_all_equal(ocp.load(one), ocp.load(two))


def test_lines_that_are_lost_are_not_trained_over(tmp_path):
    run(make_stage(steps=45), tmp_path)
    path = tmp_path / "metrics.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:2]))  # up to step 30; those of 40 and 45 are gone
    with pytest.raises(UserError, match="ends at step 30, its lines up to step 40"):
        run(make_stage(), tmp_path)
    path.write_text("".join(kept[:3]))
    run(make_stage(), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [20, 30, 40, 60]


def test_the_headline_stays_beside_the_bar_until_its_next_value():
    stage = make_stage(headline="eval/score")
    shown = train.headline(stage, {"train/loss": 2.0})
    assert shown == "train/loss 2"
    shown = train.headline(stage, {"eval/score": np.array([1.0, 2.0])}, shown)
    assert shown == "eval/score 1.5"
    assert train.headline(stage, {"train/loss": 1.0}, shown) == shown
    line = {"train/loss": 1.0, "eval/score": 3.0}
    assert train.headline(stage, line, shown) == "eval/score 3"
    stage = make_stage(headline="train/loss")
    shown = train.headline(stage, {"train/loss": 2.0})
    assert shown == train.headline(stage, {"eval/score": 5.0}, shown) == "train/loss 2"
    assert train.headline(stage, {"train/loss": 1.0}, shown) == "train/loss 1"


@pytest.mark.parametrize(
    "stop_at", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5, 11)), 3]
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop_at):
    whole = run(make_stage(), tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole")] == [20, 30, 40, 60]
    with pytest.raises(Interrupted, match=f"saved at step {5 * stop_at} of 60"):
        run(make_stage(), tmp_path / "parts", stop_at)
    parts = run(make_stage(), tmp_path / "parts")
    chex.assert_trees_all_equal(whole, parts)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_lost_tail_is_trained_again(tmp_path):
    """A kill after step 45's checkpoint: later lines and half a line remain."""
    whole = run(make_stage(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "60")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "tra')
    chex.assert_trees_all_equal(whole, run(make_stage(), tmp_path / "killed"))
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")


def test_streaming_gives_the_same_run(tmp_path):
    whole = run(make_stage(), tmp_path / "device")
    streamed = run(make_stage(device_data_limit=0), tmp_path / "stream")
    chex.assert_trees_all_equal(whole, streamed)
    assert lines(tmp_path / "device") == lines(tmp_path / "stream")


def test_seeds_in_one_program_equal_separate_runs(tmp_path):
    many = run(make_stage(num_seeds=3, seed=7), tmp_path / "many")
    for number in range(3):
        one = run(make_stage(seed=7 + number), tmp_path / str(number))
        picked = seeds.pick(many, number, 3)
        chex.assert_trees_all_close(one, picked, rtol=1e-5)
        for ours, theirs in zip(
            lines(tmp_path / str(number)), lines(tmp_path / "many")
        ):
            for name, value in ours.items():
                if name != "step":
                    np.testing.assert_allclose(value, theirs[name][number], rtol=1e-4)
    streamed = run(
        make_stage(num_seeds=3, seed=7, device_data_limit=0), tmp_path / "stream"
    )
    chex.assert_trees_all_equal(many, streamed)


RULES = (("table/weights", (None, "model")),)


@pytest.mark.parametrize(
    "mesh, num_seeds",
    [
        pytest.param((8, 1), 1, marks=pytest.mark.slow),
        pytest.param((8, 1), 2, marks=pytest.mark.slow),
        ((4, 2), 1),
        pytest.param((4, 2), 2, marks=pytest.mark.slow),
    ],
)
def test_meshes_agree_and_rules_place_the_optimiser_too(tmp_path, mesh, num_seeds):
    plain = run(make_stage(num_seeds=num_seeds), tmp_path / "plain")
    stage = make_stage(num_seeds=num_seeds, mesh=mesh, rules=RULES)
    split = run(stage, tmp_path / "split")
    chex.assert_trees_all_close(plain, split, rtol=1e-4)
    for leaf in (
        split.params["table"]["weights"],
        split.opt_state[0].mu["table"]["weights"],
    ):
        assert leaf.sharding.device_set == set(jax.devices()[: mesh[0] * mesh[1]])
        assert leaf.addressable_shards[0].data.shape[-1] == 8 // mesh[1]
    resumed = run(stage, tmp_path / "split")
    chex.assert_trees_all_equal(split, resumed)


def test_rules_fail_at_the_start(tmp_path):
    for rules, message in (
        ((("no_such_table", ("model",)),), "matches no parameter"),
        ((("weights", (None, "experts")),), "names axis 'experts'"),
    ):
        with pytest.raises(UserError, match=message):
            run(make_stage(mesh=(4, 2), rules=rules), tmp_path)
    with pytest.raises(UserError, match="8 rows, not divisible by mesh.model=3"):
        run(make_stage(mesh=(1, 3), rules=RULES), tmp_path)
    with pytest.raises(UserError, match="needs 16 devices"):
        sharding.make_mesh(16, 1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    run(make_stage(steps=30), tmp_path)
    with pytest.raises(UserError, match="not finite at step 31"):
        run(make_stage(dataset=probe_data(poison=True)), tmp_path)
    assert (tmp_path / "checkpoints" / "30").is_dir()
    with pytest.raises(UserError, match="at step 1, before anything was learnt"):
        run(make_stage(dataset=probe_data(poison=True)), tmp_path / "new")


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(make_stage(), tmp_path)
    for file in (tmp_path / "checkpoints" / "60").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoints/60 cannot be read"):
        run(make_stage(), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "60")
    assert int(run(make_stage(), tmp_path).step) == 60


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(make_stage(), tmp_path)
    x = np.zeros((200, 5), np.float32)
    other = Dataset({"x": x, "y": x[:, 0]}, {}, {})
    with pytest.raises(UserError, match="use another --workdir"):
        run(make_stage(dataset=other), tmp_path)
