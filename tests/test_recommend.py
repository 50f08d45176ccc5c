"""Asking a trained recommender: items by hand, streams, refusals, whole runs."""

import io
import json

import jax
import numpy as np
import pytest
import test_ladder as ladder
import toy_recommenders as toy

from jaxrec import (
    defaults,
    evaluate,
    experiment,
    export,
    exported,
    finished,
    recommend,
    recommender,
)
from jaxrec.methods import ce, popularity
from jaxrec.types import UserError

IDS = np.arange(21) * 10  # of the log; row 0 is padding
TITLES = ["", *(f"item {n}" for n in range(1, 21)), *[""] * 107]


def policy(mask_seen=False, titles=TITLES):
    """Repeats the items of the history, the last one first; then what is popular."""
    info = toy.data().info | dict(item_ids=IDS, titles=titles, mask_seen=mask_seen)
    method = popularity.make_last_item(None, info)
    state = method.init(jax.random.key(0), {}, {})
    return finished.Policy(method, state, info, "train")


def model(**kwargs):
    method, state, info, *_ = policy(**kwargs)
    return recommender.make(method.scores, state, info)


def popular():
    """The log's ids, the most frequent first."""
    count = toy.data().info["item_count"][1:21]
    return (10 * (1 + np.argsort(-count, kind="stable"))).tolist()


def ids(found):
    return [one.id for one in found]


def test_the_best_items_of_a_history_by_hand():
    """Histories of any number and length, of which the last five events count."""
    one = model()
    many = recommend.top(one, [[30, 70, 20], [], [200] * 9 + [10, 20, 30, 40, 50]], 5)
    assert ids(many[0])[:3] == [20, 70, 30]
    assert ids(many[0])[3:] == [n for n in popular() if n not in (20, 70, 30)][:2]
    assert ids(many[1]) == popular()[:5]  # the cold start
    assert ids(many[2]) == [50, 40, 30, 20, 10]
    assert many[0][0].title == "item 2"
    assert many[0][0].score > many[0][1].score > many[0][2].score
    assert ids(recommend.top(one, [[30, 70, 20]], 5)[0]) == ids(many[0])


def test_items_of_the_whole_history_are_left_out():
    history = [200, 10, 20, 30, 40, 50, 60]  # 200 is not among the last five
    found = ids(recommend.top(model(mask_seen=True), [history], 20)[0])
    assert found == [n for n in popular() if n not in history]  # fewer than asked for
    assert ids(recommend.top(model(), [history], 20, mask_seen=True)[0]) == found
    assert 60 in ids(recommend.top(model(mask_seen=True), [history], 1, False)[0])


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(UserError, match="item 35 is none of the 20 items"):
        recommend.top(model(), [[10, 35]], 5)
    with pytest.raises(UserError, match="k is 21: give 1 to 20"):
        recommend.top(model(), [[10]], 21)


def test_a_stream_of_histories(monkeypatch, capsys):
    monkeypatch.setattr(finished, "policy", lambda *args, **kwargs: policy())
    lines = [
        json.dumps(dict(history=[30, 70], k=2, user="u1")),
        "",
        json.dumps(dict(history=[], user=7)),
        json.dumps(dict(history=[5], user=7)),
        json.dumps(dict(history=3)),
        json.dumps(dict(history=[10], k="2")),
        "{",
    ]
    out = io.StringIO()
    assert recommend.main(["--run=r", "--k=3"], lines, out) == 2
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert answers[0]["user"] == "u1" and answers[0]["items"] == [70, 30]
    assert answers[0]["titles"] == ["item 7", "item 3"]
    assert np.diff(answers[0]["scores"]) < 0
    assert answers[1]["user"] == 7 and answers[1]["items"] == popular()[:3]
    errors = ["item 5 is none", "no question", "k is '2'", "no JSON"]
    assert len(answers) == 2 + len(errors)
    for found, reason in zip(answers[2:], errors):
        assert found["error"].startswith(reason)
    assert "2 histories, 4 refused; p50" in capsys.readouterr().err
    out = io.StringIO()
    assert recommend.main(["--run=r", "--history=30, 70", "--k=2"], out=out) == 0
    lines = out.getvalue().splitlines()
    assert lines[0] == "after 30 item 3, 70 item 7"
    assert lines[1].split() == ["1", "70", "1.0000", "item", "7"]


def test_ids_of_words():
    """ "12" may be the number or the word, whichever the log has."""
    one = model()
    assert recommend.history_of(one, "30, 70") == [30, 70]
    assert recommend.history_of(one, "") == []
    word = one._replace(numbers={"30": 1, "tea pot": 2})
    assert recommend.history_of(word, "30,tea pot,9") == ["30", "tea pot", 9]
    assert recommend.history_of(word, "-5,--5,\u00b2") == [-5, "--5", "\u00b2"]


def refusal(capsys, *flags):
    """The one line that the command refuses with."""
    assert recommend.main([*map(str, flags), "--history=", "--k=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def without(name):
    return lambda found: {k: v for k, v in found.items() if k != name}


def test_a_config_that_is_no_runs_is_told_in_one_line(tmp_path, capsys):
    config = defaults.recommender("ce", ce.HPARAMS, "", steps=2, batch_size=8)
    whole = json.loads(json.dumps(config.to_dict()))
    for lacking, words in (("", "is not finished"), ("data", "(no data)")):
        (tmp_path / "config.json").write_text(json.dumps(without(lacking)(whole)))
        assert words in refusal(capsys, f"--run={tmp_path}")
    whole["train"].pop("evals")
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert "evals" in refusal(capsys, f"--run={tmp_path}")


@pytest.mark.slow
def test_runs_are_asked_and_exported(tmp_path, capsys):
    """From their checkpoints; a policy of observations is exported, not asked."""
    config = defaults.recommender("ce", ce.HPARAMS, "", steps=2, batch_size=8)
    config.data.update(num_users=60, data_dir=str(tmp_path / "data"))
    config.train.evals, config.num_seeds = (), 2
    config.train.ce.encoder.width = 8
    experiment.run(config, tmp_path / "run")
    run = f"--run={tmp_path}/run"
    assert recommend.main([run, "--seed_number=1", "--history=", "--k=3"]) == 0
    assert "popular" in capsys.readouterr().out
    assert export.main([run, f"--out={tmp_path}/out", "--seed_number=1"]) == 0
    one = recommend.load(tmp_path / "run", number=1)
    other, first = recommend.load(tmp_path / "out"), recommend.load(tmp_path / "run")
    history = one.ids[1:4]
    want = [y.score for y in recommend.top(one, [history], 3)[0]]
    found = [y.score for y in recommend.top(other, [history], 3)[0]]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert [y.score for y in recommend.top(first, [history], 3)[0]] != want
    bc = ladder.smoke("td3bc")
    bc.data.data_dir = str(tmp_path / "data")
    bc.train.update(steps=2, log_every=2, eval_every=0, checkpoint_every=2, evals=())
    experiment.run(bc, tmp_path / "bc")
    assert recommend.main([f"--run={tmp_path}/bc", "--history=1"]) == 2
    assert "td3bc of stage train" in capsys.readouterr().err
    facts = export.write(tmp_path / "bc", tmp_path / "act")
    assert facts["kind"] == "act" and facts["difference"] <= 1e-5
    call, weights, _ = exported.read(tmp_path / "act")
    size = int(facts["arguments"]["observation"][2])
    assert call(weights, np.zeros((3, size), np.float32)).shape[0] == 3
    with pytest.raises(UserError, match="is a policy of observations"):
        recommend.load(tmp_path / "act")


@pytest.mark.slow
def test_a_split_catalogue_stays_so_where_there_are_devices(tmp_path, capsys):
    config = defaults.recommender("ce", ce.HPARAMS, "", steps=2, batch_size=8)
    config.data.update(num_users=60, data_dir=str(tmp_path / "data"))
    config.train.evals, config.rules, config.mesh.model = (), ("items",), 4
    config.train.ce.encoder.width = 8
    experiment.run(config, tmp_path / "run")
    split = recommend.load(tmp_path / "run")
    table = split.weights.params["params"]["item_table"]["embedding"]
    assert table.sharding.spec[0] == "model" and split.mesh.shape["model"] == 4
    # A machine with fewer devices than the catalogue was split over.
    file = tmp_path / "run" / "config.json"
    told = json.loads(file.read_text())
    told["mesh"]["model"] = 16
    file.write_text(json.dumps(told))
    whole = recommend.load(tmp_path / "run")
    assert whole.mesh is None and len(whole.weights.step.devices()) == 1
    histories = [[], split.ids[1:4], split.ids[5:30]]
    ours, theirs = (recommend.top(one, histories, 20) for one in (split, whole))
    assert [ids(found) for found in ours] == [ids(found) for found in theirs]
    scores = [[y.score for found in all_ for y in found] for all_ in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=1e-5)
    assert evaluate.main([f"--run={tmp_path}/run", "--evals=ranking"]) == 0
    assert "valid/ndcg@10" in capsys.readouterr().out
