"""Two copies, the coin, and the switch between optimisers at update T."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from toy_recommenders import NEVER, apart, make, run, start

from jaxrec import checkpoint, optim
from jaxrec.methods import copies, sa2c, sac, snqn, sqn, vpq
from jaxrec.types import UserError

SWITCH = 4


def phases(steps=100, switch=40, reset=True, optim_after=None, **before):
    config = ConfigDict(dict(optim=optim.spec(**before), steps=steps, switch=switch))
    config.optim_after = optim.spec_after() | (optim_after or {})
    config.reset_optim = reset
    return copies.make_phases(FrozenConfigDict(config))


def moved(tx, state, step, grad=1.0):
    """How far one update goes at this step, and the state after it."""
    params = dict(w=jnp.zeros(1))
    params, state = tx.descend(
        jnp.int32(step), dict(w=jnp.full(1, grad)), state, params
    )
    return float(params["w"][0]), state


def test_the_coin_is_fair_and_has_no_memory():
    sides = np.asarray(jax.vmap(copies.coin)(jnp.arange(4000)))
    spread = 0.5 / np.sqrt(4000)
    assert abs(sides.mean() - 0.5) < 4 * spread
    for lag in (1, 2, 3):
        same = (sides[lag:] == sides[:-lag]).mean()
        assert abs(same - 0.5) < 4 * spread
    hundreds = sides.reshape(40, 100).sum(1)
    assert abs(hundreds.std() - 5) < 4 * 5 / np.sqrt(80)
    assert 450 < sides[:1000].sum() < 550
    # A function of the update alone.
    np.testing.assert_array_equal(jax.vmap(copies.coin)(jnp.arange(9, 50)), sides[9:50])


def test_the_other_copy_rests():
    states, _ = run(make(sqn), start(make(sqn)), 6)
    sides = [bool(copies.coin(jnp.int32(t))) for t in range(6)]
    assert set(sides) == {False, True}
    one, two = ("params", "first"), ("target_params", "second")
    for first, before, after in zip(sides, states, states[1:]):
        moving, resting = (one, two) if first else (two, one)
        jax.tree.map(
            np.testing.assert_array_equal,
            (getattr(before, resting[0]), before.opt_state[resting[1]]),
            (getattr(after, resting[0]), after.opt_state[resting[1]]),
        )
        assert apart(getattr(before, moving[0]), getattr(after, moving[0])) > 1e-4
    # Each optimiser counts the updates of its copy.
    counts = [int(states[-1].opt_state[k][0].count) for k in ("first", "second")]
    assert counts == [sum(sides), 6 - sum(sides)]


@pytest.mark.parametrize(
    "module,base,reset",
    [
        (sac, sqn, True),
        pytest.param(sac, sqn, False, marks=pytest.mark.slow),
        pytest.param(sa2c, snqn, True, marks=pytest.mark.slow),
    ],
)
def test_the_base_until_t_and_another_loss_from_there(module, base, reset):
    """So a switch that never comes gives the base: SAC is SQN, SA2C is SNQN."""
    method = make(module, switch=SWITCH, reset_optim=reset)
    a, b = run(method, start(method), 6)[0], run(make(base), start(make(base)), 6)[0]
    for t in range(7):
        far = max(
            apart(a[t].params, b[t].params),
            apart(a[t].target_params, b[t].target_params),
        )
        assert far < 1e-6 if t <= SWITCH else far > 1e-5, (t, far)
    first = a[-1].opt_state["first"]
    assert set(first) == ({"before", "after"} if reset else {"before"})
    if reset:  # the moments at T are fresh
        late = [a[-1].opt_state[k]["after"][0].count for k in ("first", "second")]
        early = [a[-1].opt_state[k]["before"][0].count for k in ("first", "second")]
        assert (sum(map(int, early)), sum(map(int, late))) == (SWITCH, 2)


def test_a_checkpoint_before_or_after_t_goes_on_bit_for_bit(tmp_path):
    method = make(sac, switch=SWITCH, reset_optim=True)
    states, _ = run(method, start(method), 6)
    for step in (2, SWITCH, 5):
        with checkpoint.opened(tmp_path / str(step)) as folder:
            checkpoint.save(folder, step, states[step], {}).result()
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                states[0],
            )
            state, _ = checkpoint.restore(folder, step, abstract)
        assert int(state.step) == step
        again = run(method, state, 6 - step, step)[0][-1]
        jax.tree.map(np.testing.assert_array_equal, again, states[-1])


def test_the_second_optimiser_follows_the_first():
    for module, rate in ((sac, 0.02), (vpq, 0.02), (sa2c, 1e-3)):
        before = ConfigDict(optim.spec(lr=0.02, clip=3.0, schedule="cosine", warmup=5))
        found = optim.follow(ConfigDict(module.HPARAMS["optim_after"]), before)
        assert vars(found) == dict(vars(found), lr=rate, clip=3.0, name="adam")
        assert (found.schedule, found.warmup) == ("cosine", 0)
    tx = phases(name="sgd", lr=0.5)
    state = tx.init(dict(w=jnp.zeros(1)))
    assert [moved(tx, state, t)[0] for t in (0, 39, 40, 99)] == [-0.5] * 4
    tx = phases(name="sgd", lr=0.5, optim_after=dict(lr=0.25))
    assert [moved(tx, state, t)[0] for t in (0, 39, 40, 99)] == [-0.5] * 2 + [-0.25] * 2


@pytest.mark.parametrize("reset", [True, False])
def test_a_schedule_after_the_switch_starts_there(reset):
    late = dict(schedule="cosine", lr=1.0)
    tx = phases(name="sgd", lr=0.5, reset=reset, optim_after=late)
    state = tx.init(dict(w=jnp.zeros(1)))
    found = [-moved(tx, state, t)[0] for t in (39, 40, 70, 100)]
    np.testing.assert_allclose(found, [0.5, 1.0, 0.5, 0.0], atol=1e-6)
    # Whichever copy makes them, it is the stage's updates that count.
    for t in (40, 70):
        _, state = moved(tx, state, t)
    np.testing.assert_allclose(-moved(tx, state, 70)[0], 0.5, atol=1e-6)


def test_moments_are_carried_or_fresh():
    for reset in (True, False):
        tx = phases(lr=0.1, switch=1, reset=reset)
        state = tx.init(dict(w=jnp.zeros(1)))
        first, state = moved(tx, state, 0)
        np.testing.assert_allclose(first, -0.1, rtol=1e-4)
        second, state = moved(tx, state, 1, grad=-1.0)
        if reset:  # a first step of Adam is the rate, against the gradient
            np.testing.assert_allclose(second, 0.1, rtol=1e-4)
        else:  # m = .1 * .9 - .1 = -.01 over 1 - .9^2, v = 1
            np.testing.assert_allclose(second, 0.1 * 0.01 / 0.19, rtol=1e-3)


def test_moments_that_do_not_fit_are_refused():
    for late in (dict(name="sgd"), dict(clip=1.0)):
        with pytest.raises(UserError, match="reset_optim=False: optim_after") as error:
            phases(reset=False, optim_after=late)
        assert "\n" not in str(error.value)
        phases(reset=True, optim_after=late)


def test_a_switch_that_never_comes_is_told(capsys):
    make(sac, switch=99)
    assert capsys.readouterr().err == ""
    make(sac, switch=NEVER)
    told = capsys.readouterr().err
    assert "switch=1000000 is not reached in 100 updates" in told
    assert told.count("\n") == 1
