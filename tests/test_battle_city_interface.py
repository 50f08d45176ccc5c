"""Battle City's interface, scenarios and maps, pictures, the command, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from battle_city_help import FIRE, all_grounds, equal, random_play, sample

from jaxrec.envs import battle_city
from jaxrec.envs.battle_city import maps, render, scenarios
from jaxrec.types import UserError


@pytest.fixture(scope="module")
def env():
    return all_grounds()


@pytest.fixture(scope="module")
def played():
    return random_play()


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
        mode = {
            "arena9": "annihilate",
            "thicket9": "annihilate",
            "twin13": "assault",
        }.get(name, "defend")
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
        (dict(mix=1), "mix=1: four shares"),
        (dict(ice="no"), "ice='no': use true or false"),
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
