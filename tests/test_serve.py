"""Events in, recommendations out: the answers of whole histories, from runs too."""

import io
import json

import jax
import numpy as np
import pytest
from test_serving import SIZES, histories, model_of

from configs import recmamba as recmamba_config
from jaxrec import defaults, experiment, serve, serving
from jaxrec.methods import ce


def served(model, lines, start=None):
    out = io.StringIO()
    text = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    start = serve.start(model) if start is None else start
    start, seconds, refused = serve.serve(model, start, text, out, 3)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    return start, answers, len(seconds), refused


def test_a_stream_of_events():
    """Answers are those of the whole history; refused events change nothing."""
    model, items = model_of("mamba"), histories(2, 9)
    ids = [[model.ids[n] for n in row] for row in items]
    events = [dict(user="a", item=item) for item in ids[0]]
    events.insert(4, dict(user=1, items=ids[1][:6]))
    events += [dict(user=1, item=item) for item in ids[1][6:]]
    state, answers, count, refused = served(model, events)
    assert count == len(events) == 13 and refused == 0
    x, _ = serving.prefill(model, items, np.full(2, 9))
    best = [[model.ids[n] for n in row] for row in serving.top_k(model, x, 3)[1]]
    assert answers[9] == dict(user="a", items=best[0])
    assert answers[-1] == dict(user=1, items=best[1])
    before = jax.tree.map(np.asarray, state.states)
    bad = {
        "the history is empty": dict(user="a", items=[]),
        "item 10000 is none of the 30 items": dict(user="a", item=10_000),
        "item 0 is none": dict(user="b", item=0),
        "item 5 is none": dict(user="a", items=[10, 5]),
        "item True is no id": dict(user="a", item=True),
        "user None is no id": dict(item=10),
        "no event": dict(user="a"),
        "items 10 is no list": dict(user="a", items=10),
        "no JSON": "{",
        "no JSON (maximum recursion": '{"user": "a", "items": ' + 9_999 * "[",
    }
    state, answers, count, refused = served(model, bad.values(), state)
    assert count == 0 and refused == len(bad)
    for answer, reason in zip(answers, bad, strict=True):
        assert answer["error"].startswith(reason)
    assert list(state.rows) == ["a", 1]
    for a, b in zip(*map(jax.tree.leaves, (state.states, before))):
        np.testing.assert_array_equal(a, b)


def test_room_for_more_users_and_a_history_longer_than_a_call(monkeypatch):
    model, items = model_of("mamba"), histories(4, 9)
    monkeypatch.setattr(serve, "FIRST_ROWS", 2)
    monkeypatch.setattr(serving, "LONGEST", 4)
    ids = [[model.ids[n] for n in row] for row in items]
    events = [dict(user=n, items=row) for n, row in enumerate(ids)]
    state, answers, *_ = served(model, events)
    assert len(state.states.layers[0].state) == 4
    x, _ = serving.prefill(model, items, np.full(4, 9))
    for answer, row in zip(answers, serving.top_k(model, x, 3)[1], strict=True):
        assert answer["items"] == [model.ids[n] for n in row]


def test_no_run_no_service(tmp_path, capsys):
    assert serve.main([f"--run={tmp_path}/none"], []) == 2
    error = capsys.readouterr().err
    assert "none holds no run (config.json)" in error and error.count("\n") == 1
    for place in (tmp_path / "no" / "states.npz", tmp_path):
        assert serve.main([f"--run={tmp_path}/none", f"--states={place}"], []) == 2
        assert "name a file in a folder that is there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_served(tmp_path, capsys):
    """From its checkpoint and over a snapshot; faults are one line and status 2."""
    config = defaults.recommender("ce", ce.HPARAMS, "", steps=2, batch_size=8)
    config.data.update(num_users=60, data_dir=str(tmp_path / "data"))
    config.train.evals = ()
    config.train.ce.encoder.update(SIZES | dict(name="mamba", scan="reference"))
    experiment.run(config, tmp_path / "run")
    run, states = f"--run={tmp_path}/run", f"--states={tmp_path}/s.npz"
    model = serving.load(tmp_path / "run")
    ids = model.ids[1:4]
    lines = [json.dumps(dict(user="u", item=item)) for item in ids]
    answers = []
    for part in (lines[:2], lines[2:]):
        out = io.StringIO()
        assert serve.main([run, states, "--k=3"], part, out) == 0
        answers += [json.loads(line) for line in out.getvalue().splitlines()]
    _, err = capsys.readouterr()
    assert "2 events of 1 users, 0 refused; p50" in err and "1 users known" in err
    x, _ = serving.prefill(model, np.array([[1, 2, 3]]), np.array([3]))
    best = [model.ids[n] for n in serving.top_k(model, x, 3)[1][0]]
    assert answers[-1] == dict(user="u", items=best)
    for argv, reason in (
        ([run, "--stage=test"], "has no stage 'test': name one of train"),
        ([run, "--k=100000"], "k is 100000"),
        ([run, "--seed_number=1"], "seed number 1"),
        ([run, f"--states={tmp_path}/run/config.json"], "is no snapshot of states"),
    ):
        assert serve.main(argv, []) == 2
        error = capsys.readouterr().err  # before it may stand which scan runs
        assert reason in error and error.count("jaxrec: error: ") == 1
        assert error.count("\n") <= 2
    assert serve.main([run], ['{"user": "u"}'], io.StringIO()) == 2
    (tmp_path / "run" / "train" / "done.json").unlink()
    assert serve.main([run], []) == 2
    assert "is not finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_packed_histories_is_served(tmp_path):
    """What the README's stream is served from: the table scores, cosines too."""
    config = recmamba_config.get_config("smoke")
    config.data.data_dir = str(tmp_path / "data")
    config.train.update(steps=2, log_every=2, eval_every=2, checkpoint_every=2)
    config.train.recmamba.update(loss="sampled", negatives=8, temperature=0.05)
    experiment.run(config, tmp_path / "run")
    model = serving.load(tmp_path / "run")
    x, _ = serving.prefill(model, np.array([[1, 2, 3]]), np.array([3]))
    table = np.asarray(model.params["params"]["item_table"]["embedding"])
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    scores = np.asarray(x)[0] / np.linalg.norm(x[0]) @ table.T
    scores = scores[1 : model.network.num_items + 1]
    found = np.asarray(serving.top_k(model, x, 3)[1][0])
    np.testing.assert_array_equal(found, np.argsort(-scores, kind="stable")[:3] + 1)
