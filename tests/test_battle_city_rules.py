"""The rules of Battle City by hand-worked positions: moves, bullets, hits."""

import pytest
from battle_city_help import (
    DOWN,
    FIRE,
    GO_DOWN,
    GO_LEFT,
    GO_RIGHT,
    GO_UP,
    LEFT,
    RIGHT,
    STAY,
    UP,
    places,
    three_agents,
)

from jaxrec.envs.battle_city.maps import EMPTY, STEEL


@pytest.fixture(scope="module")
def table():
    return three_agents()


def test_ground_that_stops_tanks(table):
    rows = """
        .......
        .#.S.~.
        .......
        .b.i...
        .......
        .......
        ......."""
    for col in (1, 3, 5):
        state = table.set(agents=[(2, col, DOWN)], rows=rows)
        after, _ = table.play(state, GO_UP)
        assert places(after) == {0: (2, col)} and after.facing[0] == UP
    for col in (1, 3):  # bush and ice let it through
        after, _ = table.play(table.set(agents=[(2, col, UP)], rows=rows), GO_DOWN)
        assert places(after) == {0: (3, col)}
    after, _ = table.play(table.set(agents=[(6, 2, UP)]), GO_RIGHT)  # the base
    assert places(after) == {0: (6, 2)} and after.facing[0] == RIGHT
    for place, action in (
        ((0, 0), GO_UP), ((0, 0), GO_LEFT), ((6, 6), GO_DOWN), ((6, 6), GO_RIGHT),
    ):  # fmt: skip
        after, _ = table.play(table.set(agents=[(*place, UP)]), action)
        assert places(after) == {0: place}


def test_several_tanks_and_one_tile(table):
    # Two want one tile: neither moves.
    state = table.set(agents=[(2, 1, UP), (2, 3, UP)])
    after, _ = table.play(state, GO_RIGHT, GO_LEFT)
    assert places(after) == {0: (2, 1), 1: (2, 3)}
    # Swaps are forbidden.
    state = table.set(agents=[(2, 1, UP), (2, 2, UP)])
    after, _ = table.play(state, GO_RIGHT, GO_LEFT)
    assert places(after) == {0: (2, 1), 1: (2, 2)}
    # A chain of three moves, whatever the order of the numbers.
    for chain in ((1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 3, 2)):
        state = table.set(agents=[(2, col, UP) for col in chain])
        after, _ = table.play(state, *[GO_RIGHT] * 3)
        assert places(after) == {i: (2, col + 1) for i, col in enumerate(chain)}
        after, _ = table.play(after, *[GO_RIGHT] * 3)
        after, _ = table.play(after, *[GO_RIGHT] * 3)  # the first is at the border
        again, _ = table.play(after, *[GO_RIGHT] * 3)
        assert places(again) == places(after)
    # Nobody follows one who wants to leave and cannot.
    state = table.set(agents=[(2, 4, UP), (2, 5, UP), (4, 6, UP)])
    rows = ".......\n" * 2 + "......#\n" + ".......\n" * 4
    state = table.set(agents=[(2, 4, UP), (2, 5, UP)], rows=rows)
    after, _ = table.play(state, GO_RIGHT, GO_RIGHT)
    assert places(after) == {0: (2, 4), 1: (2, 5)}
    # Three in a ring of four turn into its free corner, one after another.
    state = table.set(agents=[(2, 2, UP), (2, 3, UP), (3, 3, UP)])
    after, _ = table.play(state, GO_RIGHT, GO_DOWN, GO_LEFT)
    assert places(after) == {0: (2, 3), 1: (3, 3), 2: (3, 2)}


def test_enemies_move_two_ticks_of_three_or_all(table):
    for kind, wanted in ((0, 4), (1, 6), (2, 6), (3, 4)):
        stun = [0, 0, 0, 0, 9, 9, 9]
        state = table.set(
            agents=[(6, 6, UP)], enemies=[(0, 0, DOWN)], kind=[1] * 3 + [kind] * 4,
            stun=stun, hp=[1, 0, 0, 4, 0, 0, 0],
        )  # fmt: skip
        for _ in range(6):
            state, _ = table.play(state)
        assert places(state)[3] == (wanted, 0)


def test_bullets_and_ground(table):
    rows = """
        .......
        .#~SB..
        .......
        .b.....
        ...i...
        .......
        .......""".replace("B", ".")
    # A brick breaks and takes the bullet; the next one passes and leaves the map.
    state = table.set(agents=[(2, 1, UP)], rows=rows)
    after, _ = table.play(state, FIRE)
    assert after.terrain[1, 1] == EMPTY and not after.bullet[0]
    assert after.brick_hp.sum() == 0
    after, _ = table.play(after, FIRE)
    assert not after.bullet[0] and after.reload[0] == 1  # not loaded yet: no shot
    after, _ = table.play(after)
    after, _ = table.play(after, FIRE)
    assert after.bullet[0] and tuple(after.bullet_pos[0]) == (0, 1)
    after, _ = table.play(after)
    assert not after.bullet[0]
    # Steel takes it and stays; water, bush and ice let it pass.
    after, _ = table.play(table.set(agents=[(2, 3, UP)], rows=rows), FIRE)
    assert after.terrain[1, 3] == STEEL and not after.bullet[0]
    after, _ = table.play(table.set(agents=[(2, 2, UP)], rows=rows), FIRE)
    assert after.bullet[0] and tuple(after.bullet_pos[0]) == (0, 2)
    after, _ = table.play(table.set(agents=[(2, 1, DOWN)], rows=rows), FIRE)
    assert after.bullet[0] and tuple(after.bullet_pos[0]) == (4, 1)
    # Two shots at one brick in one tick are both spent; one tick apart one passes.
    state = table.set(agents=[(1, 0, RIGHT), (2, 1, UP)], rows=rows)
    after, _ = table.play(state, FIRE, FIRE)
    assert after.terrain[1, 1] == EMPTY and not after.bullet.any()
    state = table.set(agents=[(1, 0, RIGHT), (3, 1, UP)], rows=rows)
    after, _ = table.play(state, FIRE, FIRE)
    assert after.bullet.tolist()[:2] == [False, True]
    assert tuple(after.bullet_pos[1]) == (1, 1)


@pytest.mark.parametrize("speed, wall, target", [(3, 1, 5), (3, 2, 5), (3, 3, 5)])
def test_fast_bullets_do_not_tunnel(table, speed, wall, target):
    line = ["."] * 7
    line[wall] = "#"
    rows = "\n".join(["." * 7] * 2 + ["".join(line)] + ["." * 7] * 4)
    fields = dict(bullet_speed=[speed] * 7)
    state = table.set(agents=[(2, target, UP)], bullets={3: (2, 0, RIGHT)}, rows=rows,
                      **fields)  # fmt: skip
    after, _ = table.play(state)
    assert not after.bullet[3] and after.terrain[2, wall] == EMPTY and after.alive[0]
    state = table.set(agents=[(2, wall, UP)], bullets={3: (2, 0, RIGHT)}, **fields)
    after, _ = table.play(state)
    assert not after.bullet[3] and not after.alive[0]


def test_hits_and_rewards(table):
    # Basic: one hit kills; the reward is 10 of the enemies in all.
    state = table.set(agents=[(3, 0, RIGHT)], enemies=[(3, 2, UP)], pool=1)
    after, info = table.play(state, FIRE)
    assert not after.alive[3] and info["kills"] == 1 and not after.bullet[0]
    assert info["reward"] == pytest.approx(10 / table.game.enemies)
    # Armor: four hits, a quarter of it each.
    state = table.set(
        agents=[(3, 0, RIGHT)], enemies=[(3, 2, UP)], kind=[1] * 3 + [3] * 4,
        hp=[1, 0, 0, 4, 0, 0, 0], pool=1,
    )  # fmt: skip
    for number in range(10):
        state, info = table.play(state, FIRE)
        hit = number % 3 == 0
        assert info["reward"] == pytest.approx(2.5 / table.game.enemies * hit)
        assert state.hp[3] == 3 - number // 3
    assert not state.alive[3] and info["kills"] == 1
    # A friend is stunned, four ticks without action, and the bullet is spent.
    state = table.set(agents=[(3, 0, RIGHT), (3, 1, UP)], pool=1)
    state, info = table.play(state, FIRE)
    assert state.alive[1] and state.stun[1] == 4 and not state.bullet[0]
    assert not table.env.legal(state)[1, 1:].any() and table.env.legal(state)[1, 0]
    for _ in range(4):
        state, _ = table.play(state, STAY, GO_UP)
        assert places(state)[1] == (3, 1)
    state, _ = table.play(state, STAY, GO_UP)
    assert places(state)[1] == (2, 1)
    # Nobody is hit by the bullet of his own.
    state = table.set(agents=[(3, 3, RIGHT)], bullets={0: (3, 3, RIGHT)}, pool=1)
    state, _ = table.play(state)
    assert state.alive[0] and state.bullet[0] and state.stun[0] == 0


def test_tanks_that_drive_into_bullets(table):
    # It steps onto the tile, or would cross it on the way: hit either way.
    for place in ((3, 3), (3, 2)):
        state = table.set(agents=[(3, 1, UP)], bullets={3: (*place, LEFT)}, pool=1)
        after, _ = table.play(state, GO_RIGHT)
        assert not after.alive[0] and not after.bullet[3]
    # It leaves the line in time.
    state = table.set(agents=[(3, 1, UP)], bullets={3: (3, 3, LEFT)}, pool=1)
    after, info = table.play(state, GO_UP)
    assert after.alive[0] and tuple(after.bullet_pos[3]) == (3, 1)
    assert not info["lost"]


def test_bullets_that_meet(table):
    for gap in (1, 2, 3, 4):  # swapping tiles, or on one tile, in either sub-tick
        shells = {0: (3, 1, RIGHT), 3: (3, 1 + gap, LEFT)}
        state = table.set(agents=[(6, 6, UP)], bullets=shells, pool=1)
        after, _ = table.play(state)
        assert not after.bullet.any()
    shells = {0: (3, 1, RIGHT), 1: (3, 3, LEFT)}  # friends do not mind
    state = table.set(agents=[(6, 6, UP), (6, 5, UP)], bullets=shells, pool=1)
    after, _ = table.play(state)
    assert tuple(after.bullet_pos[0]) == (3, 3) and tuple(after.bullet_pos[1]) == (3, 1)
    shells = {0: (4, 3, UP), 3: (3, 2, RIGHT)}  # at a right angle
    after, _ = table.play(table.set(agents=[(6, 6, UP)], bullets=shells, pool=1))
    assert not after.bullet.any()


def test_reloading(table):
    state = table.set(agents=[(0, 0, UP)], pool=1)  # the shot leaves the map at once
    fired = []
    for _ in range(9):
        assert bool(table.env.legal(state)[0, 5]) == (state.reload[0] == 0)
        state, _ = table.play(state, FIRE)
        fired.append(bool(state.fired[0]))
    assert fired == [True, False, False] * 3
