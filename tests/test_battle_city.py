"""Battle City as an environment: properties of random play, views, interface, input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from battle_city_help import DOWN, FIRE, LEFT, RIGHT, UP, Table

from jaxrec.envs import battle_city
from jaxrec.envs.battle_city import maps, render, scenarios
from jaxrec.envs.battle_city.observe import CHANNELS, NUMBER
from jaxrec.types import UserError

ALL_GROUNDS = """
    E..bE.b.E
    .b#.i.#b.
    .bb.S.bb.
    ~.b.b.b.~
    .i..b..i.
    .#.b.b.#.
    bb.....bb
    ...###...
    .A.#B#.A."""
NUM, STEPS = 100, 100  # 10k steps


def play(env, num, steps, seed=0):
    """Random legal play: states [steps + 1, num, ...], outcomes and actions."""

    def advance(state, key):
        key_act, key_step = jax.random.split(key)
        actions = jax.vmap(env.random)(jax.random.split(key_act, num), state)
        keys = jax.random.split(key_step, num)
        after, outcome = jax.vmap(env.tick)(keys, state, actions)
        return after, (after, outcome, actions)

    @jax.jit
    def run(key):
        key_start, key_play = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(key_start, num))[1]
        return state, jax.lax.scan(advance, state, jax.random.split(key_play, steps))[1]

    first, found = run(jax.random.key(seed))
    states, outcomes, actions = jax.tree.map(np.asarray, found)
    states = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, states)
    return states, outcomes, actions


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "all.txt"
    path.write_text(ALL_GROUNDS)
    return battle_city.make(
        dict(map=str(path), ice=True, lives=2, brick_hp=2, mix=(0.25,) * 4, limit=60)
    )


@pytest.fixture(scope="module")
def played(env):
    return play(env, NUM, STEPS)


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


def sample(played, num):
    states = played[0]
    draw = np.random.default_rng(0)
    steps, games = draw.integers(20, STEPS, num), draw.integers(0, NUM, num)
    return jax.tree.map(lambda x: jnp.asarray(x[steps, games]), states)


@pytest.fixture(scope="module")
def views(env, played):
    """States of 100 games, and all that can be seen of them."""

    def look(state):
        window, vector = env.observe(state)
        return dict(
            window=window,
            vector=vector,
            grid=env.grid(state),
            canvas=env.canvas(state, window),
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


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def pieces(num=40, seed=5):
    """Keys, made anew for each use, and actions of `num` games."""
    actions = np.random.default_rng(0).integers(0, 6, (num, 2))
    return jax.random.split(jax.random.key(seed), num), jnp.asarray(actions)


def row(n, tree):
    return jax.tree.map(lambda x: x[n], tree)


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


def test_interface_of_jaxmarl(env):
    obs, state = jax.jit(env.reset)(jax.random.key(0))
    assert env.agents == ("ally_0", "ally_1") and set(obs) == {
        *env.agents,
        "world_state",
    }
    assert obs["ally_0"].shape == (env.obs_size,) == (49 * 16 + 9 + 1 + 3 + 2 + 2 + 6,)
    assert obs["world_state"].shape == (env.state_size,)
    equal(obs["world_state"], jax.jit(env.get_state)(state))
    equal(obs, jax.jit(env.get_obs)(state))
    available = env.get_avail_actions(state)
    assert available["ally_1"].tolist() == [True] * 6
    actions = dict(ally_1=jnp.int32(0), ally_0=jnp.int32(FIRE))
    obs, state, rewards, dones, info = jax.jit(env.step)(
        jax.random.key(1), state, actions
    )
    assert set(rewards) == set(env.agents) and set(dones) == {*env.agents, "__all__"}
    assert set(info) == {"won", "lost", "truncated", "base_alive", "kills"}
    assert state.bullet[0] and not state.bullet[1]
    assert env.get_avail_actions(state)["ally_0"].tolist() == [True] * 5 + [False]
    for wrong, message in (
        (jnp.zeros(3, int), r"shape \(3,\): this game has 2 agents"),
        (dict(ally_0=0), "agents ally_0, ally_1"),
        (dict(ally_0=0, ally_7=0), "ally_7: this game has"),
    ):
        with pytest.raises(UserError, match=message):
            env.step(jax.random.key(1), state, wrong)


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


def test_random_maps():
    env = battle_city.make(dict(scenario="5t_vs_20e_random"))
    draw = jax.jit(jax.vmap(lambda key: env.reset(key)[1].terrain))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 40)))
    fixed = env.game.map
    for terrain in found:
        np.testing.assert_array_equal(terrain, terrain[:, ::-1])
        kept = fixed.terrain != maps.EMPTY
        np.testing.assert_array_equal(terrain[kept], fixed.terrain[kept])
        reached = maps.reachable(terrain, fixed.bases[0])
        for row, col in (*fixed.agents, *fixed.enemies):
            assert reached[row, col] and terrain[row, col] == maps.EMPTY
    assert len({terrain.tobytes() for terrain in found}) == 40
    for code, share in maps.DENSITY.items():
        assert abs((found[:, 2:11] == code).mean() - share) < 0.05


def test_every_scenario_is_valid_and_every_map_used():
    names = {values["map"] for values in scenarios.SCENARIOS.values()}
    assert names | {"open13"} == {*maps.MAPS, maps.RANDOM}
    for name in scenarios.SCENARIOS:
        for difficulty in scenarios.DIFFICULTIES:
            game = scenarios.settings(dict(scenario=name, difficulty=difficulty))
            assert game.tanks <= 26 and game.slots <= game.enemies
    for name in maps.MAPS:
        mode = {"arena9": "annihilate", "twin13": "assault"}.get(name, "defend")
        assert maps.load(name, mode, 2, 3).name == name
    # Frozen: what a scenario means must not drift.
    medium = scenarios.settings({})
    assert (medium.aim_prob, medium.move_prob) == (0.8, 0.75)
    assert (medium.base_prob, medium.hunt_prob, medium.brick_prob) == (0.4, 0.3, 0.5)
    assert medium.mix == (0.55, 0.2, 0.1, 0.15) and medium.slots == 4
    assert scenarios.settings(dict(agents=1, enemies=9)).slots == 4
    assert scenarios.settings(dict(enemies=9)).slots == 6
    first = maps.load("open13", "defend", 2, 1).agents[:2].tolist()
    assert sorted(first) == [[12, 4], [12, 8]]  # as on the NES


FIELD = [list("E..E..E"), *[list(".......") for _ in range(5)], list(".A.B.A.")]


def broken(row, col, letter):
    rows = [list(line) for line in FIELD]
    rows[row][col] = letter
    return "\n".join("".join(line) for line in rows)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "0 x 0 cells: both sides must be 7 to 16"),
        ("E.B.A\n.....\n", "2 x 5 cells"),
        (broken(2, 2, "x"), r"cell \(2, 2\) is 'x': use one of"),
        (broken(2, 2, ".."), "row 2 has 8 cells, row 0 has 7"),
        (broken(2, 2, "B"), r"2 B \(the agents' base\) at \(2, 2\) \(6, 3\)"),
        (broken(6, 3, "."), "0 B .*needs exactly 1"),
        (broken(2, 2, "H"), "1 H .*needs exactly 0"),
        (broken(6, 1, "."), "1 A .*too few for 2"),
        ("\n".join([".......", *["......."] * 5, ".A.B.A."]), "0 E .*needs 1"),
        (broken(1, 0, "S").replace("E..E", "ESSE", 1),
         r"E at \(0, 0\) cannot reach the base at \(6, 3\)"),
        (broken(5, 1, "~").replace(".A.B", "SA~B"),
         r"A at \(6, 1\) cannot reach the base"),
    ],
)  # fmt: skip
def test_maps_that_break_a_rule_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        battle_city.make(dict(map=str(path)))
    assert "\n" not in str(error.value) and "mine.txt" in str(error.value)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(scenario="3t_vs_6e_brick"), "no scenario .*3t_vs_6e_bricks"),
        (dict(map="open9"), "neither built in nor a file: did you mean open7"),
        (dict(agent=2), "no 'agent': use agents"),
        (dict(agents=3), "2 A .*too few for 3"),
        (dict(agents=0), "agents=0: it must be 1 to 10"),
        (dict(agents=2.0), "agents=2.0"),
        (dict(agents=True), "agents=True"),
        (dict(enemies=0), "enemies=0"),
        (dict(mode="attack"), "mode='attack': use one of defend"),
        (dict(mode="annihilate"), "1 B .*needs exactly 0"),
        (dict(difficulty="insane"), "difficulty='insane'"),
        (dict(aim_prob=1.5), "aim_prob=1.5: it must be in"),
        (dict(base_prob=0.8, hunt_prob=0.8), "base_prob=0.8 and hunt_prob=0.8"),
        (dict(mix=(1, 1, 0, 0)), "mix="),
        (dict(friendly_fire="yes"), "friendly_fire='yes'"),
        (dict(scenario="3t_vs_3t_annihilate", lives=2), "lives=2"),
        (dict(scenario="3t_vs_3t_annihilate", enemies=5), "needs 5"),
        (dict(scenario="3t_vs_3t_annihilate", enemies=17), "enemies=17"),
    ],
)
def test_impossible_games_are_refused(config, message):
    with pytest.raises(UserError, match=message) as error:
        battle_city.make(config)
    assert "\n" not in str(error.value)


def test_entity_form_and_radius():
    env = battle_city.make(dict(observation="entity", radius=2))
    obs, state = jax.jit(env.reset)(jax.random.key(0))
    assert obs["ally_0"].shape == (env.obs_size,) == (6 * 14 + 23,)
    assert jax.jit(env.observe)(state).window.shape == (2, 5, 5, 16)


def test_pictures(env, played, tmp_path):
    states = sample(played, 4)
    games = [jax.tree.map(lambda x: x[n], states) for n in range(4)]  # noqa: B023
    full = render.frame(env.game, games[0], scale=8)
    assert full.shape == (80, 72, 3) and full.dtype == np.uint8
    part = render.frame(env.game, games[0], scale=8, agent=0)
    assert (part != full).any()
    from PIL import Image

    render.save_png(tmp_path / "one.png", full)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), full)
    frames = [render.frame(env.game, game, scale=8) for game in games]
    render.save_gif(tmp_path / "all.gif", frames)
    assert Image.open(tmp_path / "all.gif").n_frames == len(
        {frame.tobytes() for frame in frames}
    )
    with pytest.raises(UserError, match="one game"):
        render.frame(env.game, states)
    with pytest.raises(UserError, match="no frames"):
        render.save_gif(tmp_path / "none.gif", [])


def test_the_command_plays_and_refuses(tmp_path, monkeypatch, capsys):
    from jaxrec.envs.battle_city import __main__ as command

    path = tmp_path / "last.png"
    monkeypatch.setattr("sys.argv", ["battle_city", f"--out={path}"])
    command.main()
    assert path.stat().st_size > 0 and "base_alive" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["battle_city", "--agent=7"])
    with pytest.raises(UserError, match="agents 0 to 1"):
        command.main()


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
