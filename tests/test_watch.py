"""Believed states as pictures, and a trained team to look at."""

import importlib
import re

import numpy as np
import pytest
from battle_city_help import DOWN, LEFT, RIGHT, UP, Table

from jaxrec import experiment, watch
from jaxrec.envs.battle_city import beliefs, observe, render


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return Table(tmp_path_factory.mktemp("maps"), agents=2)


def position(board, **fields):
    return board.set(
        agents=[(6, 1, RIGHT), (3, 4, UP)],
        enemies=[(0, 0, DOWN), (2, 6, LEFT)],
        bullets={0: (6, 2, RIGHT), 2: (1, 0, DOWN)},
        **fields,
    )


def test_a_belief_that_is_the_truth_is_drawn_as_the_truth(board):
    game = board.game
    rows = """.......
              .......
              .b.i.~.
              .S...#.
              .......
              ..###..
              ...B..."""
    state = position(board, rows=rows, stun=np.zeros(game.tanks, int))
    wanted = render.frame(game, state, scale=8)
    tanks = np.array(observe.entities(game, state))
    cells = np.array(board.env.grid(state))
    nothing = position(board, rows=None)._replace(
        alive=np.zeros(game.tanks, bool), bullet=np.zeros(game.tanks, bool)
    )
    assert (render.frame(game, nothing, scale=8) != wanted).any()
    # All that may come from the true state is the ground, and for the grid nothing.
    ground = nothing._replace(terrain=state.terrain, brick_hp=state.brick_hp)
    by_tanks = beliefs.from_entities(game, ground, tanks)
    by_cells = beliefs.from_grid(game, nothing, cells)
    np.testing.assert_array_equal(render.frame(game, by_tanks, scale=8), wanted)
    np.testing.assert_array_equal(render.frame(game, by_cells, scale=8), wanted)
    # Half of a tank is none; of two the more certain one is drawn.
    tanks[0, 0] = 0.5
    assert not beliefs.from_entities(game, ground, tanks).alive[0]
    cells[..., observe.ALLY] *= 0.6
    cells[4, 4, observe.ALLY] = 0.9
    found = beliefs.from_grid(game, nothing, cells)
    assert found.pos[0].tolist() == [4, 4] and found.alive[:2].all()


@pytest.mark.slow
@pytest.mark.parametrize("form, panels", [("entities", 4), ("grid", 4), ("vector", 2)])
def test_a_trained_team_is_watched(tmp_path, capsys, form, panels):
    from PIL import Image

    config = importlib.import_module("configs.sidiff").get_config("smoke")
    config.mesh = dict(data=1, model=1)
    config.train.sidiff.update(form=form, samples=2, widths=(8, 8, 8))
    if form == "grid":
        config.data.settings = "radius=2,observation=flat"
    config.train.update(steps=2, log_every=2, eval_every=0, checkpoint_every=0)
    config.train.evals = ()
    experiment.run(config, tmp_path / "run")
    out = tmp_path / "game.gif"
    assert watch.main([f"--run={tmp_path / 'run'}", f"--out={out}"]) == 0
    told = capsys.readouterr().out
    with Image.open(out) as picture:
        side, gap = 7 * 24, 6
        assert picture.size == (panels * side + (panels - 1) * gap, side + 24)
        steps = int(re.search(r"'steps': (\d+)", told)[1])
        # Equal frames that follow each other are one, shown for longer.
        assert 1 < picture.n_frames <= steps
    assert watch.main([f"--run={tmp_path / 'run'}", "--agent=2"]) == 2
    assert "has agents 0 to 1" in capsys.readouterr().err


def test_runs_that_play_nothing_are_refused(tmp_path, capsys):
    assert watch.main([f"--run={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
