"""What the agents of Battle City see: windows, grids, canvases, entities, bush."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from battle_city_help import (
    ALL_GROUNDS,
    DOWN,
    FIRE,
    LEFT,
    RIGHT,
    UP,
    Table,
    all_grounds,
    random_play,
    sample,
)

from jaxrec.envs import battle_city
from jaxrec.envs.battle_city import maps
from jaxrec.envs.battle_city.observe import CHANNELS, NUMBER


@pytest.fixture(scope="module")
def env():
    return all_grounds()


@pytest.fixture(scope="module")
def played():
    return random_play()


@pytest.fixture(scope="module")
def views(env, played):
    """States of 100 games, and all that can be seen of them."""

    def look(state):
        window, vector = env.observe(state)
        return dict(
            window=window,
            vector=vector,
            grid=env.grid(state),
            canvas=env.canvas(env.observe(state)),
            entities=env.entities(state),
            seen=env.seen_entities(state),
        )

    states = sample(played, 100)
    found = jax.jit(jax.vmap(look))(states)
    return jax.tree.map(np.asarray, (states, found))


def test_observation_is_the_crop_of_the_state_under_the_bush_rule(env, views):
    """Against a plain loop over cells."""
    states, seen = views
    grids = seen["grid"]
    radius, ours, hidden = env.game.radius, env.num_agents, 0
    for n in range(len(grids)):
        padded = np.zeros(np.add(grids[n].shape, (2 * radius, 2 * radius, 0)))
        padded[..., 0] = 1
        padded[radius:-radius, radius:-radius] = grids[n]
        for i in range(ours):
            row, col = states.pos[n, i]
            crop = padded[row : row + 2 * radius + 1, col : col + 2 * radius + 1].copy()
            if not states.alive[n, i]:
                assert not seen["window"][n, i].any() and not seen["vector"][n, i].any()
                continue
            for e in range(ours, env.game.tanks):
                r, c = states.pos[n, e]
                away = abs(r - row), abs(c - col)
                bush = states.terrain[n, r, c] == maps.BUSH
                if (
                    states.alive[n, e] and max(away) <= radius and bush
                    and sum(away) > 1 and not states.fired[n, e]
                ):  # fmt: skip
                    crop[r - row + radius, c - col + radius, [8, 10, 11, 12, 13]] = 0
                    hidden += 1
            crop[..., NUMBER] = 0
            crop[radius, radius, NUMBER] = 1
            np.testing.assert_array_equal(seen["window"][n, i], crop)
    assert hidden > 5


def test_grid_shows_what_the_state_says(env, views):
    states, grids = views[0], views[1]["grid"]
    for n in range(len(grids)):
        wanted = np.zeros_like(grids[n])
        for code in range(1, 7):
            wanted[..., code] = states.terrain[n] == code
        for i in range(env.game.tanks):
            ally = i < env.num_agents
            if states.alive[n, i]:
                place = tuple(states.pos[n, i])
                wanted[place][7 if ally else 8] = 1
                wanted[place][10 + states.facing[n, i]] = 1
                if ally:
                    wanted[place][NUMBER] = (i + 1) / env.num_agents
            if states.bullet[n, i]:
                wanted[tuple(states.bullet_pos[n, i])][14 if ally else 15] = 1
        np.testing.assert_allclose(grids[n], wanted)
    assert (
        len(CHANNELS) == 16 and CHANNELS[8] == "enemy" and CHANNELS[14] == "ally_bullet"
    )


def test_canvas_holds_no_falsehood(env, views):
    states, (pasted, known) = views[0], views[1]["canvas"]
    full = np.broadcast_to(views[1]["grid"][:, None], pasted.shape)
    np.testing.assert_array_equal(pasted[known], full[known])
    assert (pasted[~known] == 0).all() and not known[..., NUMBER].any()
    # It is known that something is not known: enemies in bush.
    enemy, bush = full[..., 8] > 0, full[..., 4] > 0
    assert (enemy & bush & known[..., 4] & ~known[..., 8]).any()
    alive = states.alive[:, : env.num_agents]
    assert not known[~alive].any()
    assert known[alive].any((1, 2, 3)).all()


def test_entities(env, views):
    states, found = views
    full, seen, window = found["entities"], found["seen"], found["window"]
    radius, ours = env.game.radius, env.num_agents
    assert full.shape[1:] == (env.game.tanks, 14) and np.abs(full).max() <= 1
    np.testing.assert_array_equal(full[..., 0], states.alive)
    for n in range(len(full)):
        for i in range(ours):
            for j in range(env.game.tanks):
                away = states.pos[n, j] - states.pos[n, i] + radius
                inside = (away >= 0).all() and (away <= 2 * radius).all()
                shown = inside and window[n, i][tuple(away)][7 if j < ours else 8] > 0
                wanted = full[n, j, :11] * (shown and states.alive[n, j])
                np.testing.assert_array_equal(seen[n, i, j, :11], wanted)


@pytest.fixture(scope="module")
def bush(tmp_path_factory):
    board = ALL_GROUNDS.replace("i", "b")
    return Table(tmp_path_factory.mktemp("bush"), board, aim_prob=1.0)


def test_bush_hides_from_both_teams(bush):
    rows = "\n".join(["." * 9] * 3 + ["....b...."] + ["." * 9] * 5)
    look = jax.jit(bush.env.observe)
    centre = bush.game.radius

    def shown(**fields):
        place = fields.pop("place", (3, 6))
        state = bush.set(
            agents=[(*place, UP)], enemies=[(3, 4, LEFT)], rows=rows, **fields
        )
        window = look(state).window[0]
        r, c = np.array((3, 4)) - place + centre
        return window[r, c, 8], window[r, c, 12], window[r, c, 4]

    assert shown() == (0, 0, 1)
    assert shown(fired=[0, 0, 1, 0, 0, 0]) == (1, 1, 1)
    assert shown(place=(3, 5)) == (1, 1, 1) and shown(place=(4, 5)) == (0, 0, 1)
    # An enemy aims at what it sees.
    aims = jax.jit(lambda key, state: bush.env.tick(key, state, jnp.zeros(2, int))[0])
    for place, fired, fires in (
        ((3, 4), False, False), ((3, 4), True, True), ((3, 5), False, True),
    ):  # fmt: skip
        state = bush.set(
            agents=[(*place, UP), (8, 0, UP)], enemies=[(3, 7, LEFT)], rows=rows,
                stun=[0] * 6,
            fired=[fired] + [False] * 5,
        )  # fmt: skip
        assert aims(jax.random.key(0), state).fired[2] == fires


def test_drivers_aim_hunt_and_spare_their_base(bush):
    drive = jax.jit(jax.vmap(bush.env.scripted, in_axes=(0, None)))
    keys = lambda: jax.random.split(jax.random.key(0), 50)  # noqa: E731
    blocked = "\n".join(["." * 9] * 4 + ["..S......"] + ["." * 9] * 4)
    for agent, enemy, rows, fires in (
        ((4, 0, RIGHT), (4, 5), None, True),
        ((4, 0, RIGHT), (4, 5), blocked, False),
        ((4, 0, RIGHT), (4, 6), None, True),
        ((4, 0, RIGHT), (4, 7), None, False),  # seven tiles
        ((3, 4, DOWN), (7, 4), None, True),
        ((3, 4, DOWN), (4, 8), None, False),  # the own base is in line
    ):
        state = bush.set(agents=[agent], enemies=[(*enemy, UP)], rows=rows)
        chosen = np.asarray(drive(keys(), state)[:, 0])
        assert (chosen == FIRE).all() if fires else (chosen != FIRE).all()
    hunts = dict(move_prob=0.0, hunt_prob=0.6, base_prob=0.4)
    hunting = battle_city.make(dict(map=bush.game.map.name) | hunts)
    state = bush.set(agents=[(4, 0, UP)], enemies=[(4, 8, UP)])
    chosen = jax.jit(jax.vmap(hunting.scripted, in_axes=(0, None)))(keys(), state)
    assert (chosen[:, 0] == 4).all()  # no base to attack: every turn is a hunt


def test_line_of_sight(tmp_path):
    table = Table(tmp_path, line_of_sight=True)
    look = jax.jit(table.env.observe)
    for wall, letter, seen in (
        (2, "#", 0), (2, "S", 0), (2, "~", 1), (2, "b", 1), (5, "#", 1),
    ):  # fmt: skip
        line = ["."] * 7
        line[wall] = letter
        rows = "\n".join(["." * 7] * 3 + ["".join(line)] + ["." * 7] * 3)
        state = table.set(agents=[(3, 1, UP)], enemies=[(3, 4, UP)], rows=rows)
        assert look(state).window[0, 3, 6, 8] == seen


def test_entity_form_and_radius():
    env = battle_city.make(dict(observation="entity", radius=2))
    obs, state = jax.jit(env.reset)(jax.random.key(0))
    assert obs["ally_0"].shape == (env.obs_size,) == (6 * 14 + 23,)
    assert jax.jit(env.observe)(state).window.shape == (2, 5, 5, 16)
