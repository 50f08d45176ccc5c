"""The time between events, from the log to the encoder's decay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scan_oracle
import toy_recommenders as toy
from test_mamba import MIXERS, PLAIN, advance, built, close
from test_protocol import make, prepare
from toy_packed import build, data

from configs import recmamba as configs
from jaxrec import experiment, serving
from jaxrec.data import packing
from jaxrec.methods import recmamba, windows
from jaxrec.models import mamba, mamba_block
from jaxrec.types import UserError

GAPS, SECONDS = 6, np.random.default_rng(5).exponential(20, (2, 40))


def loud(params):
    """Factors of about 20 in place of 1: the skip path must not drown the state."""
    own = params["params"]
    return {"params": own | {"gap_0": own["gap_0"] + 3}}


@pytest.mark.parametrize("name", MIXERS)
def test_the_time_since_the_event_before_scales_dt(name):
    """The mixer against the loop in float64, dt times a factor for each bucket."""
    encoder, params, x = built(name, gaps=GAPS)
    p = {k[:-2]: v for k, v in loud(params)["params"].items() if k.endswith("_0")}
    x, seconds = x[:, :12].swapaxes(0, 1), SECONDS[:, :12].T
    cache = jax.tree.map(lambda c: c + 0.5, mamba.empty_cache(encoder, 2)[0])
    bucket = mamba_block.gap_bucket(jnp.asarray(seconds), GAPS)
    want = np.searchsorted([1, 3, 7, 15, 31], seconds, side="right")
    np.testing.assert_array_equal(bucket, want)
    assert set(want.flat) == set(range(GAPS))
    mixer = functools.partial(
        mamba_block.mixer, head_dim=encoder.heads, impl=PLAIN[name]
    )
    args = p, x, np.ones((12, 2), bool), None, cache
    found, after, _ = toy.jit(mixer)(*args, gap=bucket)

    p, x, cache = jax.tree.map(np.float64, (p, x, cache))
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    u, z = np.split(x @ p["in_proj"], 2, axis=-1)
    known = np.concatenate([cache.tail.swapaxes(0, 1), u])
    u = silu(sum(known[j : j + 12] * p["conv"][j] for j in range(3)) + p["conv_bias"])
    r, b, c = np.split(u @ p["x_proj"], [len(p["dt_proj"]), -3], axis=-1)
    dt = np.log1p(np.exp(r @ p["dt_proj"] + p["dt_bias"])) * np.exp(p["gap"][want])
    shape = (12, 2, -1, encoder.heads) if encoder.heads else u.shape
    scan = u.reshape(shape), dt, -np.exp(p["A_log"]), b, c, cache.state
    y, h_last = scan_oracle.scan(*scan)
    y = ((y.reshape(u.shape) + p["skip"] * u) * silu(z)) @ p["out_proj"]
    close((found, after.state), (y, h_last))


def test_times_in_chunks_in_pieces_and_not_at_all():
    encoder, params, x = built("mamba2", gaps=GAPS)
    params = loud(params)
    length, seconds = np.array([20, 20]), jnp.asarray(SECONDS[:, :20], jnp.float32)
    x = x[:, :20]
    whole, last = advance(encoder, params, x, length, gap=seconds)
    first, cache = advance(encoder, params, x[:, :10], length - 10, gap=seconds[:, :10])
    args = x[:, 10:], length - 10, None, cache
    second, end = advance(encoder, params, *args, gap=seconds[:, 10:])
    close((jnp.concatenate([first, second], axis=1), end), (whole, last))
    same = {"params": params["params"] | {"gap_0": jnp.zeros((GAPS, 4))}}
    plain, _ = advance(encoder.clone(gaps=0), params, x, length)
    close(advance(encoder, same, x, length, gap=seconds)[0], plain)
    assert np.abs(whole - plain).max() > 0.01
    with pytest.raises(UserError, match="gaps is 6, but the times .* not known here"):
        advance(encoder, params, x, length)


def test_the_log_s_times_reach_rows_and_windows():
    """Seconds since the event before of the same history, 0 at its first."""
    draw = np.random.default_rng(0)
    time = np.cumsum(draw.integers(1, 9, 400)) * 10
    rows = [(n % 20, int(draw.integers(1, 9)), t) for n, t in enumerate(time.tolist())]
    log = make(rows)
    found = prepare(log, gaps=True, session_by="session")
    gap, start = found.train["gap"], found.train["timestep"] == 0
    assert not gap[start].any() and gap.dtype == np.float32
    seconds = np.concatenate([np.diff(time[s::20]) for s in range(20)])
    assert np.isin(gap[~start], seconds).all() and (gap[~start] >= 200).all()
    assert "gap" not in prepare(log, session_by="session").train
    packed = packing.view(found, "packed", 8).train
    row, column = np.argwhere(packed["position"] > 0).T
    assert (
        len(row) == (~start).sum() and not packed["gap"][packed["position"] == 0].any()
    )
    np.testing.assert_array_equal(
        np.sort(packed["gap"][row, column]), np.sort(gap[~start])
    )
    window = {k: v[None, -4:] for k, v in found.train.items()}
    window |= dict(mask=np.array([[False, True, True, True]]))
    event = windows.transition(window)
    np.testing.assert_array_equal(event.gap, [[*gap[-3:-1], 0]])
    np.testing.assert_array_equal(event.history[3], event.gap)
    shown = recmamba.examples(window, False)
    np.testing.assert_array_equal(shown.gap, [gap[-3:]])
    with pytest.raises(UserError, match="has no timestamps: data.gaps needs them"):
        prepare(make(rows)._replace(facts=dict(timestamps=False)), gaps=True)


def test_the_encoder_and_the_data_have_to_agree():
    info = data().info | dict(gaps=True)
    for changes, given in (({"encoder.gaps": 4}, None), ({}, info)):
        with pytest.raises(UserError, match="with encoder mamba or mamba2 set both"):
            build(info=given, **changes)
    timed = build(info=info, **{"encoder.gaps": 4})
    batch = dict(data().train)
    batch["gap"] = np.ones_like(batch["item"], np.float32)
    state = jax.eval_shape(timed.init, jax.random.key(0), batch, {})
    assert state.params["params"]["encoder"]["gap_0"].shape == (4, 2)
    with pytest.raises(UserError, match="stream of events that is served has no times"):
        serving.check_step(mamba.Mamba(gaps=4))


@pytest.mark.slow
def test_a_run_learns_and_is_evaluated_with_times(tmp_path):
    config = configs.get_config("smoke")
    config.data.update(source="simulated", num_users=300, data_dir=str(tmp_path))
    config.mesh = dict(data=1, model=1)
    config.headline = config.select = "valid/ndcg@10"
    config.train.data.gaps = True
    config.train.recmamba.encoder.gaps = 8
    config.train.evals = ("ranking",)
    config.train.update(steps=20, log_every=10, eval_every=0, checkpoint_every=0)
    last = experiment.run(config, tmp_path / "run")["stages"]["train"]["last"]
    assert np.isfinite(last["train/loss"]) and 0 < last["test/ndcg@10"] < 1
