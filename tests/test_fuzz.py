"""Malformed files and configs: one line that says what is wrong, or they are read.

JAXREC_FUZZ says how many inputs there are in all, 200 unless it is set. A fault comes
back with `@reproduce_failure`, which hypothesis prints.
"""

import contextlib
import gc
import importlib
import io
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from log_files import config as log_config
from log_files import rows
from malformed import TOKENS, columns, edited, edits, values
from ml_collections import ConfigDict
from test_data_formats import FILE
from test_data_formats import config as array_config
from test_npz import NPZ

from jaxrec import settings as resolver
from jaxrec.data import cache
from jaxrec.data.sources import SOURCES
from jaxrec.types import UserError

pytestmark = pytest.mark.slow
TESTS = 9  # that share the inputs
SECONDS = 20  # of the processor; more is a hang
ours = settings(
    max_examples=max(int(os.environ.get("JAXREC_FUZZ", 200)) // TESTS, 1),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def quickly():
    """Raises TimeoutError after SECONDS of the processor."""

    def late(*_):
        raise TimeoutError(f"{SECONDS} s of the processor")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refused_or_done(action):
    """Any other end than a result or a UserError of one line is a fault."""
    with quickly(), contextlib.redirect_stdout(io.StringIO()):
        try:
            action()
            event("read")
        except UserError as error:
            event("refused")
            assert str(error).strip() and "\n" not in str(error)


def load(source, name, content, make_config=log_config, **changes):
    """Read the file of that content; nothing of a refused one stays in the cache."""
    folder = Path(tempfile.mkdtemp(prefix="jaxrec-fuzz-"))
    try:
        path = folder / name
        path.write_bytes(content)
        config = make_config(source=source, path=str(path), **changes)
        config.data_dir = str(folder / "cache")
        with np.errstate(all="ignore"):
            refused_or_done(lambda: SOURCES[source](config))
        for found in (folder / "cache").glob("*"):
            assert not found.name.startswith("."), found
            cache.read_arrays(found)
    finally:
        gc.collect(0)
        shutil.rmtree(folder)


def written(rows_of, head="", between=","):
    lines = [head] * bool(head) + [between.join(map(str, row)) for row in rows_of]
    return ("\n".join(lines) + "\n").encode()


LOG = rows(num=30)
HEADS = "sid,what,at,did"
FILES = dict(
    table=("log.csv", written([(s, i, t, "buy" * b) for s, i, t, b in LOG], HEADS)),
    retailrocket=(
        "events.csv",
        written(
            [(1_000 * t, s, ("view", "addtocart")[b], i, "") for s, i, t, b in LOG],
            "timestamp,visitorid,event,itemid,transactionid",
        ),
    ),
    recbole=(
        "log.inter",
        written(
            [(s, i, 1 + 4 * b, t) for s, i, t, b in LOG],
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "\t",
        ),
    ),
    gru4rec=(
        "log.tsv",
        written([(s, i, t) for s, i, t, _ in LOG], "SessionId\tItemId\tTime", "\t"),
    ),
    sasrec=("log.txt", written([(s, i) for s, i, _, _ in LOG], "", " ")),
)
COLUMNS = dict(session="sid", item="what", time="at", event="did")


@pytest.mark.parametrize("source", FILES)
@ours
@given(st.data())
def test_logs(source, data):
    name, content = FILES[source]
    fields = dict(
        split=data.draw(st.sampled_from(["", "random_session", "leave_one_out"])),
        min_item=data.draw(st.sampled_from([-1, 1])),
    )
    if source == "table":
        fields["columns"] = COLUMNS
    if data.draw(st.integers(0, 9)):
        content = edited(content, data.draw(edits(TOKENS)))
    else:
        content = data.draw(st.binary(max_size=200))
    load(source, name, content, **fields)


OPTIONS = st.fixed_dictionaries(
    dict(
        time_limit=st.sampled_from([0, 2, 1_000]),
        window=st.sampled_from([0, 2]),
        valid_fraction=st.sampled_from([0.0, 0.5]),
        clip_actions=st.booleans(),
        env_id=st.just(""),
    )
)
NO_EDITS = st.just([])


@ours
@given(
    columns(NPZ), st.one_of(NO_EDITS, edits([b"\x00", b"PK", b"\x93NUMPY"])), OPTIONS
)
def test_npz(found, changes, options):
    file = io.BytesIO()
    np.savez(file, **found)
    content = edited(file.getvalue(), changes)
    load("npz", "mine.npz", content, array_config, **options)


@ours
@given(columns(FILE), st.one_of(NO_EDITS, edits([b"\x00", b"OHDR", b"TREE"])), OPTIONS)
def test_hdf5(found, changes, options):
    h5py = pytest.importorskip("h5py")
    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        for key, value in found.items():
            if key in out or any(key.startswith(f"{k}/") for k in found if k != key):
                continue
            try:
                out[key] = value
            except TypeError:  # no such type in HDF5
                out[key] = np.bytes_(b"text")
    content = edited(file.getvalue(), changes)
    load("hdf5", "mine.hdf5", content, array_config, **options)


CONFIGS = ("sqn", "otto", "recmamba", "qmix", "sidiff", "sidiff_rec", "td3bc")


@ours
@given(st.sampled_from(CONFIGS), st.data())
def test_configs(name, data):
    found = importlib.import_module(f"configs.{name}").get_config("smoke")
    fields = {
        k: v for k, v in found.items(preserve_field_references=False) if k != "stages"
    }
    flat = dict(leaves(fields))
    for field in data.draw(st.lists(st.sampled_from(sorted(flat)), max_size=3)):
        found.update_from_flattened_dict({field: data.draw(values(flat[field]))})
    refused_or_done(lambda: resolver.resolve(found))


def leaves(fields, prefix=""):
    for name, value in fields.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str, tuple)):
            yield prefix + name, value


@ours
@given(st.data())
def test_fields_of_the_data(data):
    """Settings of the protocol on a good file, together with a good file's reading."""
    name, content = FILES["table"]
    numbers = ("valid", "test", "test_days", "min_session", "min_item", "session_gap")
    numbers += ("session_chunk", "sample_sessions", "min_clicks", "iterate", "seq_len")
    numbers += ("score_first_event", "drop_unseen_items", "mask_seen", "click_reward")
    numbers += ("hash_items", "seed", "buy_rating")
    words = ("split", "session_by", "preset", "delimiter", "purchase", "ignore")
    good = log_config("table")
    fields = {
        field: data.draw(values(good[field]))
        for field in data.draw(st.sets(st.sampled_from(numbers + words), max_size=3))
    }
    fields["columns"] = COLUMNS | data.draw(
        st.dictionaries(
            st.sampled_from(["session", "user", "item", "time", "event", "rating"]),
            st.sampled_from(["sid", "what", "at", "did", "", "no"]),
            max_size=1,
        )
    )
    load("table", name, content, **fields)
