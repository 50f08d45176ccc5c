"""Ready buffers of the SQN family: pandas pickles, rebuilt to sessions."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
from log_files import NUM_ITEMS, NUM_SESSIONS, config, counts, load, rows, sessions

from jaxrec.data import buffer
from jaxrec.types import UserError

pd = pytest.importorskip("pandas")
pandas_base = pytest.importorskip("pandas.core.indexes.base")

WIDTH = 4
PAD = NUM_ITEMS  # the code numbers items from 0 and pads with their number
ROWS = [(s, i - 1, t, b) for s, i, t, b in rows()]


def whole(kept=ROWS):
    """{session: [(item, bought), ...]}."""
    found = {}
    for session, item, _, bought in kept:
        found.setdefault(session, []).append((item, bought))
    return found


def history(items):
    """(state, its length) as the authors make them: an empty one has length 1."""
    last = items[-WIDTH:]
    return last + [PAD] * (WIDTH - len(last)), max(len(last), 1)


def transitions(kept=ROWS):
    found = []
    for events in whole(kept).values():
        items = [item for item, _ in events]
        for step, (item, bought) in enumerate(events):
            state, length = history(items[:step])
            after, after_length = history(items[: step + 1])
            found.append(
                dict(
                    state=state,
                    len_state=length,
                    action=item,
                    is_buy=bought,
                    next_state=after,
                    len_next_states=after_length,
                    is_done=step == len(items) - 1,
                )
            )
    return pd.DataFrame(found)


def sampled(kept):
    names = ["session_id", "item_id", "timestamp", "is_buy"]
    return pd.DataFrame(kept, columns=names)


def read_back(log):
    """{session: [(item, bought), ...]} of Events."""
    found = {}
    for row in np.lexsort((log.time, log.session)):
        event = (log.item[row].item(), log.kind[row].item())
        found.setdefault(log.session[row].item(), []).append(event)
    return found


@pytest.mark.parametrize("version", [2, 4, 5])
def test_transitions_in_order_are_whole_sessions_again(tmp_path, version):
    transitions().to_pickle(tmp_path / "replay_buffer.df", protocol=version)
    log = buffer.load(config("buffer", tmp_path))
    assert list(read_back(log).values()) == list(whole().values())
    assert log.scored.all() and log.part is None


def test_shuffled_transitions_keep_their_histories(tmp_path):
    """Each row is a session of its own, that teaches its last event alone."""
    frame = transitions().sample(frac=1, random_state=0)
    frame.to_pickle(tmp_path / "replay_buffer.df")
    log = buffer.load(config("buffer", tmp_path))
    found = [(x[:-1], x[-1]) for x in read_back(log).values()]
    joined = sorted((row["action"], row["is_buy"]) for _, row in frame.iterrows())
    assert sorted(
        (i, k) for i, k in zip(log.item[log.scored], log.kind[log.scored])
    ) == (joined)
    long = [row for _, row in frame.iterrows() if row["state"][0] != PAD]
    for row in long[:50]:
        items = row["state"][: row["len_state"]]
        assert any(
            [i for i, _ in past][-len(items) :] == items and now[0] == row["action"]
            for past, now in found
        )
    for part in ("val", "test"):
        sampled(ROWS[:60]).to_pickle(tmp_path / f"sampled_{part}.df")
    data = load("buffer", tmp_path, tmp_path, preset="paper")
    ids, drawn = data.info["item_ids"], data.drawn["train"]
    assert len(drawn) == len(ROWS)  # each event is learned once
    assert sorted(ids[data.train["item"][drawn]].tolist()) == sorted(r[1] for r in ROWS)
    count = np.bincount([row[1] for row in ROWS], minlength=NUM_ITEMS)
    assert data.info["item_count"][1 : NUM_ITEMS + 1].tolist() == count.tolist()
    # Not every row is the last of its session, else no value would look ahead.
    ends = data.train["done"][drawn]
    assert ends.sum() == frame["is_done"].sum() < len(ends)
    assert not data.train["next_item"][drawn].any()


def test_a_folder_with_its_split(tmp_path):
    own = {part: [r for r in ROWS if r[0] % 4 == n] for n, part in enumerate("abcd")}
    transitions(own["a"] + own["b"]).to_pickle(tmp_path / "replay_buffer.df")
    sampled(own["c"]).to_pickle(tmp_path / "sampled_val.df")
    # Sessions of the authors' files have string times in some sets.
    text = [(s, i, str(np.datetime64(t, "s")), b) for s, i, t, b in own["d"][::-1]]
    sampled(text).to_pickle(tmp_path / "sampled_test.df")
    data = load("buffer", tmp_path, tmp_path, preset="paper")
    for part, rows_of in (("valid", own["c"]), ("test", own["d"])):
        flat = data.evals[part]
        found = sessions(flat, data.info["item_ids"])
        assert found == [[i for i, _ in x] for x in whole(rows_of).values()]
        assert int(flat["kind"].sum()) == sum(row[3] for row in rows_of)
    assert counts(data, "train")[1] == NUM_SESSIONS // 2
    (tmp_path / "sampled_test.df").unlink()  # as the authors ship it
    data = load("buffer", tmp_path, tmp_path, preset="paper")
    found = sessions(data.evals["test"], data.info["item_ids"])
    assert found == [[i for i, _ in x] for x in whole(own["c"]).values()]
    assert counts(data, "train")[1] + counts(data, "valid")[1] == NUM_SESSIONS // 2
    (tmp_path / "sampled_val.df").unlink()
    with pytest.raises(UserError, match="comes without a split"):
        load("buffer", tmp_path, tmp_path)
    assert load("buffer", tmp_path, tmp_path, split="random_session").train
    (tmp_path / "replay_buffer.df").unlink()
    with pytest.raises(UserError, match="has no replay_buffer.df or sampled_train.df"):
        load("buffer", tmp_path, tmp_path)


def test_the_variant_with_one_reward_level(tmp_path, capsys):
    """It has no next states: they are the states with the actions."""
    frame = transitions()
    frame = pd.DataFrame(
        dict(
            seq=frame["state"],
            len_seq=frame["len_state"],
            next=frame["action"],
        )
    )
    frame.to_pickle(tmp_path / "sampled_train.df")
    log = buffer.load(config("buffer", tmp_path / "sampled_train.df"))
    assert "no is_buy: all of its events count as clicks" in (
        "".join(capsys.readouterr())
    )
    assert not log.kind.any() and log.scored.all() and log.goes_on is None
    wanted = [[(item, 0) for item, _ in x] for x in whole().values()]
    assert list(read_back(log).values()) == wanted
    frame.sample(frac=1, random_state=0).to_pickle(tmp_path / "sampled_train.df")
    log = buffer.load(config("buffer", tmp_path / "sampled_train.df"))
    assert log.scored.sum() == len(ROWS)
    assert "rows stand alone, as if shuffled" in "".join(capsys.readouterr())


def as_old_pandas(frame, monkeypatch, manager, index):
    """Bytes of the frame as pandas 0.20 to 1.2 wrote it.

    A manager restored from a tuple (axes, values, items, {"0.14.1": ...}), an index of
    integers of its own class, and the manager under the name `_data`. `manager`: the
    module of its class; `index`: that of Int64Index.
    """

    def fake(module, name, **members):
        kind = type(name, (), members | dict(__module__=module))
        place = types.ModuleType(module)
        setattr(place, name, kind)
        patch.setitem(sys.modules, module, place)
        return kind

    class Axis:
        def __init__(self, kind, data):
            self.given = kind, dict(data=data, name=None)

        def __reduce__(self):
            return pandas_base._new_Index, self.given

    with monkeypatch.context() as patch:
        Int64Index = fake(index, "Int64Index")
        BlockManager = fake(
            manager, "BlockManager", __getstate__=lambda self: self.state
        )
        DataFrame = fake(
            "pandas.core.frame", "DataFrame", __getstate__=lambda self: self.state
        )
        names = np.array(list(frame.columns), object)
        axes = [Axis(pd.Index, names), Axis(Int64Index, np.arange(len(frame)))]
        values, items, blocks = [], [], []
        for place, name in enumerate(frame.columns):
            column = frame[name].to_numpy()
            values.append(column[None])
            items.append(Axis(pd.Index, names[place : place + 1]))
            where = slice(place, place + 1, 1) if place % 2 else np.array([place])
            blocks.append(dict(values=column[None], mgr_locs=where))
        held, whole = BlockManager(), DataFrame()
        held.state = axes, values, items, {"0.14.1": dict(axes=axes, blocks=blocks)}
        whole.state = dict(_data=held, _typ="dataframe", _metadata=[])
        return pickle.dumps(whole, protocol=4)


@pytest.mark.parametrize(
    "manager, index",
    [
        ("pandas.core.internals.managers", "pandas.core.indexes.numeric"),
        ("pandas.core.internals", "pandas.indexes.numeric"),
    ],
)
def test_tables_of_old_pandas_are_read(tmp_path, monkeypatch, manager, index):
    path = tmp_path / "replay_buffer.df"
    written = as_old_pandas(transitions(), monkeypatch, manager, index)
    for module in (manager, index):
        assert module.encode() in written
    path.write_bytes(written)
    log = buffer.load(config("buffer", path))
    assert list(read_back(log).values()) == list(whole().values())
    path.write_bytes(as_old_pandas(sampled(ROWS), monkeypatch, manager, index))
    log = buffer.load(config("buffer", path))
    assert len(log.item) == len(ROWS) and log.kind.sum() == sum(r[3] for r in ROWS)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    bad = Malicious()
    bad.path = tmp_path / "harm"
    for inside in (bad, pd.DataFrame(dict(a=[bad])), {"a": (eval, bad)}):
        (tmp_path / "replay_buffer.df").write_bytes(pickle.dumps(inside))
        with pytest.raises(UserError, match="would call .*which no table needs") as e:
            buffer.load(config("buffer", tmp_path))
        assert "\n" not in str(e.value)
    assert not bad.path.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.drop(columns="state"), "no state and len_state; found len_state"),
        (
            lambda f: f.assign(state=[[1]] * 3 + [[1, 2]] * (len(f) - 3)),
            "its state can",
        ),
        (lambda f: f.assign(state=[[None] * 4] * len(f)), "its state cannot be read"),
        (lambda f: f.assign(action=np.nan), "its action cannot be read"),
        (lambda f: f.assign(is_buy=2), "a kind is 0 or 1, found 2"),
        (lambda f: f[:0], "its state cannot be read .no rows."),
        (lambda f: [1, 2, 3], "is no pickled table"),
    ],
)
def test_bad_buffers(tmp_path, change, message):
    path = tmp_path / "replay_buffer.df"
    with open(path, "wb") as file:
        pickle.dump(change(transitions()), file)
    with pytest.raises(UserError, match=message) as error:
        buffer.load(config("buffer", path))
    assert "\n" not in str(error.value)


def test_bad_sampled_files_and_other_files(tmp_path):
    path = tmp_path / "sampled_train.df"
    for frame, message in (
        (
            sampled(ROWS).drop(columns="item_id"),
            "no column item_id or item; found sess",
        ),
        (sampled(ROWS).assign(item_id=np.nan), "the item of event 0 is missing"),
        (sampled(ROWS).assign(timestamp="soon"), "time of event 0 is 'soon'"),
        (sampled(ROWS).assign(is_buy=np.nan), "a kind is 0 or 1, found nan"),
    ):
        frame.to_pickle(path)
        with pytest.raises(UserError, match=message):
            buffer.load(config("buffer", path))
    for content in (b"", b"session_id,item_id\n1,2\n", pickle.dumps(7)[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no pickled table"):
            buffer.load(config("buffer", path))
    with pytest.raises(UserError, match="data.path is empty"):
        buffer.load(config("buffer", ""))
