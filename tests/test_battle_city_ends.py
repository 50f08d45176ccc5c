"""The rules of Battle City by hand: ends, entries, ice, lives, other modes."""

import jax.numpy as jnp
import numpy as np
import pytest
from battle_city_help import (
    DOWN,
    FIRE,
    GO_DOWN,
    GO_RIGHT,
    GO_UP,
    LEFT,
    RIGHT,
    STAY,
    UP,
    Table,
    places,
    three_agents,
)

from jaxrec.envs.battle_city.maps import BRICK, EMPTY, STEEL


@pytest.fixture(scope="module")
def table():
    return three_agents()


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Ice, lives, steel-breaking shots, two-hit bricks, harmful friends."""
    return Table(
        tmp_path_factory.mktemp("rich"),
        ice=True, lives=2, agent_power=3, brick_hp=2, friendly_fire="damage",
        death_penalty=0.5, base_penalty=5.0,
    )  # fmt: skip


def test_the_base_ends_the_game_whoever_hits_it(table):
    for shooter in (0, 3):
        state = table.set(agents=[(6, 6, UP)], bullets={shooter: (4, 3, DOWN)}, pool=1)
        after, info = table.play(state)
        assert (
            after.done and info["lost"] and not info["won"] and not info["base_alive"]
        )
        assert not after.base_alive[0] and info["reward"] == 0


def test_ends(table):
    state = table.set(agents=[(3, 0, RIGHT)], enemies=[(3, 2, UP)], pool=0)
    after, info = table.play(state, FIRE)
    assert info["won"] and after.done and not info["truncated"] and not info["lost"]
    assert info["reward"] == pytest.approx(10 + 10 / table.game.enemies)
    # The last agent falls in the same tick: no win.
    state = table.set(
        agents=[(3, 0, RIGHT)], enemies=[(3, 2, UP)], bullets={4: (5, 0, UP)}, pool=0
    )
    after, info = table.play(state, FIRE)
    assert not after.alive.any() and info["lost"] and not info["won"]
    # At the limit a win is a win, anything else is truncated.
    for enemies, won in (([(3, 2, UP)], True), ([(2, 6, UP)], False)):
        state = table.set(agents=[(3, 0, RIGHT)], enemies=enemies, pool=0, step=49)
        _, info = table.play(state, FIRE)
        assert (
            info["won"] == won and info["truncated"] != won and info["dones"]["__all__"]
        )
    # Agents without a life are done before the game is.
    _, info = table.play(table.set(agents=[(6, 6, UP)], pool=1))
    assert not info["dones"]["__all__"] and not info["dones"]["ally_0"]
    assert info["dones"]["ally_1"] and info["dones"]["ally_2"]


def test_enemies_enter_one_by_one_at_free_points(table):
    state = table.set(agents=[(6, 6, UP)], pool=3, timer=[0] * 7)
    after, _ = table.play(state)
    entries = {tuple(int(x) for x in point) for point in table.game.map.enemies}
    assert after.alive[3:].tolist() == [True, False, False, False] and after.pool == 2
    assert places(after)[3] in entries and after.facing[3] == DOWN
    assert after.hp[3] == (4 if after.kind[3] == 3 else 1)
    # No entry with a tank beside it or a bullet on it, and none from an empty pool.
    for agents, shells, free in (
        ([(1, 1, UP), (1, 5, UP)], {0: (2, 3, UP)}, False),
        ([(1, 1, UP), (1, 5, UP)], {}, True),
        ([(1, 1, UP), (1, 5, UP), (2, 3, UP)], {}, True),
        ([(1, 1, UP), (1, 5, UP), (1, 4, UP)], {}, False),
    ):
        state = table.set(agents=agents, bullets=shells, pool=3, timer=[0] * 7,
                          bullet_speed=[2] * 7)  # fmt: skip
        after, _ = table.play(state)
        assert after.alive[3] == free
        if free:
            assert places(after)[3] == (0, 3)
    after, _ = table.play(table.set(agents=[(6, 6, UP)], pool=0, timer=[0] * 7,
                                    enemies=[(6, 0, UP)]))  # fmt: skip
    assert after.alive[3:].sum() == 1
    # The next of a slot comes spawn_delay ticks after the death.
    state = table.set(agents=[(3, 0, RIGHT)], enemies=[(3, 2, UP)], pool=2)
    came = []
    for _ in range(8):
        state, _ = table.play(state, FIRE if not came else STAY)
        came.append(bool(state.alive[3]))
    assert came == [False] * 5 + [True] * 3


def test_ice_slides(rich):
    rows = """
        .......
        .......
        ..i....
        ..i....
        ...i#..
        .......
        ......."""
    state = rich.set(agents=[(2, 1, UP)], rows=rows, pool=1)
    after, _ = rich.play(state, GO_RIGHT)
    assert places(after) == {0: (2, 3)}  # over the ice
    after, _ = rich.play(rich.set(agents=[(4, 2, UP)], rows=rows, pool=1), GO_RIGHT)
    assert places(after) == {0: (4, 3)}  # a brick stops it
    state = rich.set(agents=[(2, 1, UP), (2, 3, UP)], rows=rows, pool=1)
    after, _ = rich.play(state, GO_RIGHT)
    assert places(after) == {0: (2, 2), 1: (2, 3)}  # a tank stops it
    after, _ = rich.play(after)
    assert places(after)[0] == (2, 2)  # who did not move does not slide
    # Two that would slide onto one tile stay where they are.
    state = rich.set(
        agents=[(2, 1, UP), (1, 3, UP)], rows=rows.replace("..i", "..i", 1)
    )
    terrain = np.array(state.terrain)
    terrain[2, 3] = 0
    state = state._replace(terrain=jnp.asarray(terrain), pool=jnp.int32(1))
    after, _ = rich.play(state, GO_RIGHT, GO_DOWN)  # one slides to where one drove
    assert places(after) == {0: (2, 2), 1: (2, 3)}


def test_strong_shots_and_thick_bricks(rich):
    rows = """
        .......
        .#.S...
        .......
        .......
        .......
        .......
        ......."""
    state, _ = rich.play(rich.set(agents=[(2, 1, UP)], rows=rows, pool=1), FIRE)
    assert state.terrain[1, 1] == BRICK and state.brick_hp[1, 1] == 1
    for _ in range(3):
        state, _ = rich.play(state, FIRE)
    assert state.terrain[1, 1] == EMPTY and state.brick_hp[1, 1] == 0
    state, _ = rich.play(rich.set(agents=[(2, 3, UP)], rows=rows, pool=1), FIRE)
    assert state.terrain[1, 3] == EMPTY
    # An enemy's shot is too weak.
    state = rich.set(agents=[(6, 6, UP)], rows=rows, bullets={2: (2, 3, UP)}, pool=1)
    state, _ = rich.play(state)
    assert state.terrain[1, 3] == STEEL and not state.bullet[2]


def test_lives_friendly_damage_and_penalties(rich):
    state = rich.set(agents=[(3, 0, RIGHT), (3, 1, UP)], pool=1)
    state, info = rich.play(state, FIRE)
    assert not state.alive[1] and state.lives.tolist() == [2, 1]
    assert info["reward"] == -0.5 and not info["dones"]["ally_1"]
    assert not rich.env.legal(state)[1, 1:].any()
    back = []
    for _ in range(11):
        state, _ = rich.play(state)
        back.append(bool(state.alive[1]))
    assert back == [False] * 9 + [True] * 2
    assert places(state)[1] == tuple(rich.game.map.agents[1]) and state.facing[1] == UP
    # It waits for its tile to be free.
    home = tuple(int(x) for x in rich.game.map.agents[1])
    state = rich.set(
        agents=[(*home, UP)], pool=1, lives=[1, 1], timer=[0, 0] + [50] * 4
    )
    state, _ = rich.play(state)
    assert places(state) == {0: home}
    state, _ = rich.play(state, GO_UP)
    assert places(state)[1] == home
    # The base counts, and without lives the game is lost.
    state = rich.set(agents=[(6, 6, UP)], bullets={2: (4, 3, DOWN)}, pool=1)
    _, info = rich.play(state)
    assert info["reward"] == -5
    state = rich.set(
        agents=[(3, 0, UP)], bullets={2: (3, 2, LEFT)}, lives=[1, 0], pool=1
    )
    after, info = rich.play(state)
    assert info["lost"] and after.done


def test_annihilate_and_assault(tmp_path):
    arena = "A.....E\n.......\nA.....E\n.......\n.......\n.......\nA.....E"
    table = Table(
        tmp_path, arena, mode="annihilate", agents=3, enemies=3, mix=(0, 1, 0, 0)
    )
    assert table.state.alive.all() and table.state.pool == 0
    assert len(table.env.game.map.bases) == 0
    state = table.set(agents=[(0, 0, RIGHT)], enemies=[(0, 2, UP), (6, 6, UP)])
    state, info = table.play(state, FIRE)
    assert info["kills"] == 1 and not state.done and info["base_alive"]
    for _ in range(8):
        state, info = table.play(state)
    assert state.alive[3:].sum() == 1  # nobody comes back
    state = table.set(agents=[(0, 0, RIGHT)], enemies=[(0, 2, UP)])
    state, info = table.play(state, FIRE)
    assert info["won"] and info["reward"] == pytest.approx(10 + 10 / 3)

    twin = "E..H..E\n.......\n.......\n.......\n.......\n.......\n.A.B.A."
    table = Table(tmp_path, twin, mode="assault")
    for shells, won, lost in (
        ({0: (2, 3, UP)}, True, False),
        ({2: (4, 3, DOWN)}, False, True),
        ({0: (2, 3, UP), 2: (4, 3, DOWN)}, False, True),
        ({0: (2, 0, UP)}, False, False),
    ):
        state = table.set(agents=[(6, 6, UP)], bullets=shells, pool=0)
        _, info = table.play(state)
        assert (bool(info["won"]), bool(info["lost"])) == (won, lost)


def test_a_perfect_episode_returns_twenty(table):
    state, total = table.state, 0.0
    for _ in range(49):
        # A bullet beside the first enemy that is there; nobody else acts.
        there = np.flatnonzero(state.alive[3:]) + 3
        stun = np.where(np.arange(7) >= 3, 9, 0).astype(np.int32)
        state = state._replace(stun=jnp.asarray(stun), pos=jnp.asarray(state.pos))
        if len(there):
            row, col = (int(x) for x in state.pos[there[0]])
            bullet = np.zeros(7, bool)
            bullet[0] = True
            place = np.array(state.bullet_pos)
            place[0] = row + 1, col
            state = state._replace(
                bullet=jnp.asarray(bullet), bullet_pos=jnp.asarray(place),
                bullet_facing=jnp.zeros(7, jnp.int32),
            )  # fmt: skip
        state, info = table.play(state)
        total += float(info["reward"])
        if state.done:
            break
    assert info["won"] and total == pytest.approx(20) and info["kills"] == 4
