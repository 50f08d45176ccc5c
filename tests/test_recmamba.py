"""Learning from packed histories: equal to single ones, carried, learnt by heart."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_packed import ITEMS, L, batch_of, build, data, log, run, settings, single
from toy_recommenders import jit

from configs import recmamba as configs
from jaxrec import experiment, program, sharding
from jaxrec.data import loader, packing
from jaxrec.losses import recommender as losses
from jaxrec.methods import recmamba
from jaxrec.models import encoders
from jaxrec.types import UserError


def test_a_packed_row_has_the_loss_and_gradients_of_its_users():
    """A batch of the first rows of all strips: the mean over the tokens of its users,
    each alone in a row."""
    method = build(**{"optim.name": "sgd", "optim.lr": 1.0, "optim.clip": 0.0})
    first = {k: v[:: data().run] for k, v in data().train.items()}
    state = jit(method.init)(jax.random.key(0), first, {})
    step = jit(method.train_step)
    packed, metrics = step(state, first, jax.random.key(1))
    length = np.diff(np.flatnonzero(np.append(log()[1], 0) == 0))
    place = packing.plan(length, L).place
    total = tokens = 0.0
    changes = []
    for user in np.flatnonzero(place // L % data().run == 0):
        one = state.replace(extra=jax.tree.map(lambda x: x[:1], state.extra))
        after, found = step(one, single(user, L), jax.random.key(1))
        count = float(found["tokens"])
        total, tokens = total + count * float(found["loss"]), tokens + count
        difference = jax.tree.map(lambda a, b: b - a, one.params, after.params)
        changes.append((count, difference))
    assert tokens == int(metrics["tokens"]) > 50 and len(changes) > 6
    np.testing.assert_allclose(metrics["loss"], total / tokens, rtol=1e-5)
    want = jax.tree.map(
        lambda *x: sum(n * y for (n, _), y in zip(changes, x)) / tokens,
        *(difference for _, difference in changes),
    )
    change = jax.tree.map(lambda a, b: b - a, state.params, packed.params)
    chex.assert_trees_all_close(change, want, atol=1e-5)
    assert max(np.abs(x).max() for x in jax.tree.leaves(want)) > 1e-3


@pytest.mark.parametrize(
    "how", ["packed", pytest.param("events", marks=pytest.mark.slow)]
)
def test_only_recalls_are_learned(how):
    """The mean over what follows a cue, as if there were no other event to predict."""
    batch = batch_of(0, how=how)
    rows = recmamba.examples(batch, how == "packed")
    real = np.asarray(rows.target) > 0
    cues = dict.fromkeys(np.asarray(rows.items)[real][[1, -2]].tolist(), 1)
    asked = np.isin(rows.items, list(cues)) & real
    assert 2 <= asked.sum() < 0.5 * real.sum()
    info = data(how).info | dict(cues=cues)
    every, recalls = (build(how, info, targets=t) for t in ("all", "recalls"))
    state = jit(every.init)(jax.random.key(0), batch, {})
    found, whole = (
        float(jit(method.train_step)(state, batch, jax.random.key(1))[1]["loss"])
        for method in (recalls, every)
    )
    table, own = recmamba.split(state.params)
    encoder = encoders.make(settings().encoder, L)
    seen = table[rows.items], rows.length, rows.reset
    ahead = jit(lambda *args: encoder.apply(*args, method="advance"))
    y, _ = ahead(own, *seen)
    score = np.asarray(y @ table.T, np.float64)[..., 1 : ITEMS + 1]
    target = np.take_along_axis(score, np.maximum(rows.target, 1)[..., None] - 1, -1)
    want = (np.log(np.exp(score).sum(-1)) - target[..., 0])[asked].mean()
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert abs(whole - want) > 1e-3


def test_a_long_history_goes_on_with_the_state_of_the_batch_before():
    """Losses of the rows of one lane are those of one long row (learning rate 0)."""
    method = build(**{"optim.name": "sgd", "optim.lr": 0.0, "encoder.num_layers": 2})
    history = single(0, 40)  # 40 events: rows of 16, 16 and 8
    rows = data().train
    at = int(
        np.flatnonzero(
            (rows["item"][:, 0] == history["item"][0, 0])
            & (rows["position"][:, 0] == 0)
        )[0]
    )
    state = jit(method.init)(jax.random.key(0), history, {})
    total = 0.0
    step = jit(method.train_step)
    for number in range(3):
        row = {k: v[at + number : at + number + 1].copy() for k, v in rows.items()}
        beyond = np.cumsum(row["position"] == 0, axis=1) > (number == 0)
        row["next_item"][beyond] = 0  # who else is in the last row
        state, found = step(state, row, jax.random.key(1))
        total += float(found["loss"] * found["tokens"])
    fresh = jit(method.init)(jax.random.key(0), history, {})
    _, found = jit(method.train_step)(fresh, history, jax.random.key(1))
    assert found["tokens"] == 39
    np.testing.assert_allclose(total / 39, found["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(loss="full"),
        dict(loss="bce", sparse=True),
        dict(loss="sampled", sparse=True),
    ],
)
def test_it_learns_what_follows(changes):
    _, found = run(build(**changes, **{"optim.lr": 0.02}), 120, size=4)
    assert np.mean(found[-8:]) < 0.35 * np.mean(found[:4])


def test_windows_and_encoders_without_a_state():
    method = build("users", **{"encoder.name": "sasrec", "optim.lr": 0.02})
    state, found = run(method, 60, size=8, how="users")
    assert state.extra is None and np.mean(found[-8:]) < 0.7 * np.mean(found[:4])


def test_bce_by_hand():
    np.testing.assert_allclose(losses.bce(0.0, 0.0), 2 * np.log(2), rtol=1e-6)
    want = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-3.0))
    np.testing.assert_allclose(losses.bce(2.0, -3.0), want, rtol=1e-6)


@pytest.mark.slow
def test_the_smoke_form_runs(tmp_path):
    config = configs.get_config("smoke")
    config.data.data_dir = str(tmp_path)
    config.mesh = dict(data=1, model=1)
    config.train.update(steps=20, log_every=10, eval_every=0, checkpoint_every=0)
    summary = experiment.run(config, tmp_path / "run")
    last = summary["stages"]["train"]["last"]
    assert np.isfinite(last["train/loss"]) and 0 <= last["test/lag_40/hr@10"] <= 1


def test_every_form_of_the_config_builds(tmp_path):
    for arg in ("", "recommended", "paper"):
        config = configs.get_config(arg)
        config.data.lifelong.update(configs.SMALL)
        config.data.update(data_dir=str(tmp_path), seq_len=64)
        config = experiment.resolve(config)
        stage = experiment.build(config, "train", sharding.make_mesh(1, 1), {})
        state = jax.eval_shape(
            stage.method.init,
            program.streams(stage)[0],
            loader.host_batch(stage.dataset, 8, np.uint32(0), 0),
            {},
        )
        paper = "paper" in arg
        own = state.params["params"]["encoder"]
        assert ("positions_table" in own) == paper and (state.extra is None) == paper
        assert stage.config.recmamba.loss == ("bce" if paper else "full")


def test_settings_that_cannot_be_are_refused():
    for changes, match in (
        (dict(loss="ce"), "loss 'ce' is unknown"),
        (dict(sparse=True), "sparse=True with loss=full"),
        ({"sparse": True, "loss": "bce", "optim.name": "sgd"}, "Adam without decay"),
        ({"encoder.name": "sasrec"}, "sasrec cannot go on from a state"),
        (
            {
                "encoder.name": "mamba",
                "encoder.block": "paper",
                "encoder.num_layers": 1,
            },
            "cannot go on from a state",
        ),
        (dict(temperature=0.05), "temperature=0.05 with loss=full"),
        (dict(targets="few"), "targets 'few' is unknown: use all or recalls"),
        (dict(targets="recalls"), "the data 'toy' plant none"),
        (dict(tied=False), "tied=False: recmamba scores by the item table"),
        (dict(loss="sampled", negatives=0), "negatives=0: this needs 1"),
        ({"encoder.dropout": 1.0}, "encoder.dropout is 1.0: must be below 1"),
    ):
        with pytest.raises(UserError, match=match):
            build(**changes)


@pytest.mark.parametrize("how, said", [("packed", "goes on with"), ("users", "and ev")])
def test_what_is_cut_is_said(how, said, capsys):
    _, timestep = log()
    length = np.diff(np.flatnonzero(timestep == 0), append=len(timestep))
    longer = int((length > data(how).info["seq_len"]).sum())
    build(how)
    told = capsys.readouterr().err
    assert longer and f"{longer} histories are longer than data.seq_len=" in told
    assert f"training {said}" in told
    assert "encoder mamba: scan " in told or "encoder mamba2: scan " in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_eight_users_are_learnt_by_heart(name):
    """Random histories: every event but the first is ranked first, HR@1 = 1."""
    users, size = 8, 12
    draw = np.random.default_rng(0)
    items = draw.integers(1, ITEMS + 1, (users, size)).astype(np.int32)
    items[:, 0] = np.arange(1, users + 1)
    timestep = np.tile(np.arange(size, dtype=np.int32), users)
    arrays, run_ = packing.pack(items.ravel(), timestep, L)
    info = data().info | dict(packed=dict(run=run_, padding=0.0), longer=0)
    changes = {"encoder.name": name, "encoder.width": 32, "optim.lr": 1e-2}
    method = build(info=info, **changes)
    batch = {k: jnp.asarray(v) for k, v in arrays.items()}
    assert len(arrays["item"]) == users and run_ == 1
    state = jit(method.init)(jax.random.key(0), batch, {})
    many = jit(
        lambda state: jax.lax.fori_loop(
            0,
            400,
            lambda i, s: method.train_step(s, batch, jax.random.key(i))[0],
            state,
        )
    )
    state, scores = many(state), jit(method.scores)
    for length in range(1, size):
        known = np.where(np.arange(size) < length, items, 0)
        y = scores(state, known, np.full(users, length), np.full(users, length))
        np.testing.assert_array_equal(np.argmax(y, axis=1), items[:, length])
