"""Battle City as an environment: properties of random play, vmap, jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from battle_city_help import NUM, STEPS, all_grounds, equal, play, random_play, sample

from jaxrec.envs import battle_city
from jaxrec.envs.battle_city import maps, scenarios


@pytest.fixture(scope="module")
def env():
    return all_grounds()


@pytest.fixture(scope="module")
def played():
    return random_play()


def test_random_play_keeps_the_rules_of_space(env, played):
    states, outcomes, _ = played
    height, width = env.game.map.terrain.shape
    cell = states.pos[..., 0] * width + states.pos[..., 1]
    tanks = cell.shape[-1]
    alone = np.where(states.alive, cell, -1 - np.arange(tanks))
    ordered = np.sort(alone, axis=-1)
    assert (np.diff(ordered, axis=-1) > 0).all()  # no two tanks on a tile
    assert states.alive[..., 2:].sum() > 10_000  # and many there were
    assert (states.pos >= 0).all() and (states.pos < (height, width)).all()
    steps, games = np.indices(cell.shape[:2])
    ground = states.terrain[
        steps[..., None], games[..., None], states.pos[..., 0], states.pos[..., 1]
    ]
    assert np.isin(ground[states.alive], (maps.EMPTY, maps.BUSH, maps.ICE)).all()
    assert set(np.unique(ground[states.alive])) == {maps.EMPTY, maps.BUSH, maps.ICE}
    assert (states.bullet_pos >= 0).all()
    assert (states.bullet_pos < (height, width)).all()
    over = ground[states.alive].size
    assert over == states.alive.sum()
    # Tanks move one tile a tick, two over ice; dead ones stay or come in anew.
    same = ~outcomes.done[..., None] & states.alive[1:] & states.alive[:-1]
    away = np.abs(np.diff(states.pos, axis=0)).sum(-1)
    assert away[same].max() == 2 and (away[same] == 1).any()
    assert (ground[:-1][same] != 7).all()


def test_bullets_never_tunnel(env, played):
    states, outcomes, _ = played
    rows, cols = np.array([-1, 1, 0, 0]), np.array([0, 0, -1, 1])
    flown = 0
    stays = states.bullet[:-1] & states.bullet[1:] & ~outcomes.done[..., None]
    # A slot may have fired anew after its bullet went: then it starts at the tank.
    stays = stays & ~states.fired[1:]
    for step, game, i in np.argwhere(stays):
        start, end = (
            states.bullet_pos[step, game, i],
            states.bullet_pos[step + 1, game, i],
        )
        facing = states.bullet_facing[step, game, i]
        speed = states.bullet_speed[step, game, i]
        assert facing == states.bullet_facing[step + 1, game, i]
        for tile in range(1, speed + 1):
            row, col = start[0] + tile * rows[facing], start[1] + tile * cols[facing]
            # Solid before and after: nothing of this tick can have opened it.
            assert states.terrain[step, game, row, col] not in (maps.STEEL, maps.BASE)
            walls = states.terrain[step : step + 2, game, row, col] == maps.BRICK
            assert not walls.all()
            # Who stands there after the tick and had not been away was hit.
            stood = (states.pos[step : step + 2, game] == (row, col)).all((0, 2))
            stood = stood & states.alive[step : step + 2, game].all(0)
            stood[i] = False
            assert not stood.any()
        assert tuple(end) == (row, col)
        flown += 1
    assert flown > 500


def test_random_play_keeps_the_counts(env, played):
    states, outcomes, actions = played
    ours = env.num_agents
    assert outcomes.done.any() and outcomes.lost.any() and outcomes.truncated.any()
    together = outcomes.won.astype(int) + outcomes.lost + outcomes.truncated
    np.testing.assert_array_equal(together, outcomes.done)
    # Enemies are in the pool, on the field or dead.
    total = states.pool + states.alive[..., ours:].sum(-1) + states.kills
    assert (total == env.game.enemies).all()
    for counter, most in ((states.reload, 3), (states.stun, 5), (states.timer, 15)):
        assert counter.min() == 0 and counter.max() == most - (most < 15)
    # The action carried out is the one chosen, for living agents that are not stunned.
    free = states.alive[:-1, :, :ours] & (states.stun[:-1, :, :ours] == 0)
    free = free & ~outcomes.done[..., None]
    np.testing.assert_array_equal(states.last_action[1:][free], actions[free])
    assert (actions[~states.alive[:-1, :, :ours]] == 0).all()
    # After the end comes a fresh start, with the reward of the end.
    fresh = jax.tree.map(np.asarray, jax.jit(env.reset)(jax.random.key(9))[1])
    step, game = np.argwhere(outcomes.done)[0]
    after = jax.tree.map(lambda x: x[step + 1, game], states)
    jax.tree.map(np.testing.assert_array_equal, after, fresh)


def pieces(num=40, seed=5):
    """Keys, made anew for each use, and actions of `num` games."""
    actions = np.random.default_rng(0).integers(0, 6, (num, 2))
    return jax.random.split(jax.random.key(seed), num), jnp.asarray(actions)


def row(n, tree):
    return jax.tree.map(lambda x: x[n], tree)


def key_of(step, game, seed=0):
    """The key of one tick of `battle_city_help.play`."""
    key_play = jax.random.split(jax.random.key(seed))[1]
    key_step = jax.random.split(jax.random.split(key_play, STEPS)[step])[1]
    return jax.random.split(key_step, NUM)[game]


def test_many_games_in_a_scan_are_the_loop(env, played):
    """One tick of one game, against the same one among 100 games in a scan."""
    states, outcomes, actions = played
    tick = jax.jit(env.tick)
    for step, game in zip(range(0, STEPS, 7), range(0, NUM, 7)):
        before = jax.tree.map(lambda x: jnp.asarray(x[step, game]), states)  # noqa: B023
        after = jax.tree.map(lambda x: x[step + 1, game], states)  # noqa: B023
        outcome = jax.tree.map(lambda x: x[step, game], outcomes)  # noqa: B023
        found = tick(key_of(step, game), before, actions[step, game])
        equal(found, (after, outcome))
        equal(tick(key_of(step, game), before, actions[step, game]), found)
    others = [
        tick(jax.random.key(n), before, actions[step, game])[0].pos for n in range(20)
    ]
    assert any((np.asarray(other) != found[0].pos).any() for other in others)


@pytest.mark.slow
def test_vmap_is_the_loop_and_equal_keys_give_equal_steps(env, played):
    states = sample(played, 40)
    tick, batched = jax.jit(env.tick), jax.jit(jax.vmap(env.tick))
    keys, actions = pieces()
    together = batched(keys, states, actions)
    for n in range(0, 40, 4):
        key, actions = row(n, pieces())
        equal(tick(key, row(n, states), actions), row(n, together))
    keys, actions = pieces()
    equal(batched(keys, states, actions), together)
    keys, actions = pieces(seed=6)
    moved = batched(keys, states, actions)[0]
    assert (moved.pos != together[0].pos).any()


@pytest.mark.slow
def test_jit_changes_nothing(env, played):
    state = row(0, sample(played, 40))
    key, actions = row(0, pieces())
    plain = env.tick(key, state, actions)
    key, actions = row(0, pieces())
    equal(plain, jax.jit(env.tick)(key, state, actions))


@pytest.mark.slow
def test_games_on_the_last_axis_and_nested_vmap(env, played):
    states = sample(played, 3)
    keys, actions = pieces(3)
    last = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), states)
    ticked = jax.jit(jax.vmap(env.tick))(keys, states, actions)
    moved = jax.jit(jax.vmap(env.tick, in_axes=(0, -1, 0), out_axes=(-1, 0)))
    found = moved(pieces(3)[0], last, actions)
    equal((jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), found[0]), found[1]), ticked)
    twice = jax.tree.map(lambda x: x[None], (states, actions))
    nested = jax.jit(jax.vmap(jax.vmap(env.tick)))(pieces(3)[0][None], *twice)
    equal(jax.tree.map(lambda x: x[0], nested), ticked)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(scenarios.SCENARIOS))
def test_random_play_of_every_scenario(name):
    """No two tanks on a tile over 10k steps, and no nonsense in what is seen."""
    env = battle_city.make(dict(scenario=name, difficulty="hard"))
    states, outcomes, _ = play(env, NUM, STEPS)
    width = env.game.map.terrain.shape[1]
    cell = states.pos[..., 0] * width + states.pos[..., 1]
    alone = np.where(states.alive, cell, -1 - np.arange(cell.shape[-1]))
    assert (np.diff(np.sort(alone, axis=-1), axis=-1) > 0).all()
    total = states.pool + states.alive[..., env.num_agents :].sum(-1) + states.kills
    assert (total == env.game.enemies).all() and states.kills.any()
    last = jax.tree.map(lambda x: jnp.asarray(x[-1]), states)
    obs = jax.jit(jax.vmap(env.get_obs))(last)
    for leaf in jax.tree.leaves(obs):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() <= 1
