"""Ready buffers of the SQN family: pandas pickles, opened without running their code.

A folder with `replay_buffer.df` (transitions: state, len_state, action, is_buy, ...)
or `sampled_train.df` for training, `sampled_val.df` and `sampled_test.df`
(session_id, timestamp, item_id, is_buy); or one such file. Variants without `is_buy`
and with rows `seq, len_seq, next` go round: they have one reward level. Needs pandas.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import logs
from jaxrec.data import events, files
from jaxrec.data.events import Events
from jaxrec.types import UserError

# All that a pickle of a DataFrame of numbers and lists may call.
ALLOWED = {
    "builtins": ("slice", "list", "dict", "tuple", "set", "int", "float", "bytearray"),
    "__builtin__": ("slice", "list", "dict", "tuple", "set", "bytes", "bytearray"),
    "collections": ("OrderedDict",),
    "copy_reg": ("_reconstructor",),
    "copyreg": ("_reconstructor",),
    "_codecs": ("encode",),
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    # pandas 3 writes these, and pyarrow's where it is installed, for names of columns.
    "pandas": ("DataFrame", "Index", "RangeIndex", "StringDtype", "NA"),
    "pandas.arrays": ("ArrowStringArray", "StringArray", "DatetimeArray"),
    "pyarrow.lib": ("_restore_array", "py_buffer", "type_for_alias"),
    "pandas.core.frame": ("DataFrame",),
    "pandas.core.internals": ("BlockManager",),
    "pandas.core.internals.managers": ("BlockManager",),
    "pandas.core.internals.blocks": ("new_block",),
    "pandas._libs.internals": ("_unpickle_block", "BlockManager"),
    "pandas._libs.arrays": ("__pyx_unpickle_NDArrayBacked",),
    "pandas.core.indexes.base": ("Index", "_new_Index"),
    "pandas.indexes.base": ("Index", "_new_Index"),
    "pandas.core.indexes.range": ("RangeIndex",),
    "pandas.indexes.range": ("RangeIndex",),
    "pandas.core.indexes.numeric": ("Int64Index", "UInt64Index", "Float64Index"),
    "pandas.indexes.numeric": ("Int64Index", "UInt64Index", "Float64Index"),
    "pandas.core.arrays.string_": ("StringDtype", "StringArray"),
    "pandas.core.arrays.string_arrow": ("ArrowStringArray",),
    "pandas.core.dtypes.base": ("ExtensionDtype",),
}
PARTS = {
    0: ("replay_buffer.df", "sampled_train.df"),
    1: ("sampled_val.df",),
    2: ("sampled_test.df",),
}
NAMES = dict(  # role: what the files call it
    session=("session_id", "visitor_id", "session", "sid"),
    time=("timestamp", "time"),
    item=("item_id", "item"),
    bought=("is_buy",),
)


def load(config: Any) -> Events:
    """The buffers of the folder, or file, `config.path`."""
    path = files.absolute(config.path)
    if not config.path or not path.is_dir():
        one = files.named(config.path, what="a buffer such as replay_buffer.df")
        return _events(one, _columns(one))
    found = {}
    for part, names in PARTS.items():
        if file := files.optional(path, *names):
            found[part] = _events(file, _columns(file))
    if 0 not in found:
        raise UserError(f"{path} has no {' or '.join(PARTS[0])}: name their folder")
    if len(found) == 1:
        return found[0]
    if 2 not in found:  # the authors' code evaluates on sampled_val.df alone
        logs.say(f"{path} has no {PARTS[2][0]}: {PARTS[1][0]} is what tests")
        found[2] = found.pop(1)
    return events.concatenate(found)


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The DataFrame of a pickle as a dict of numpy columns."""
    try:
        from pandas.compat import pickle_compat
    except ImportError as error:
        raise UserError(
            f"{path} needs pandas to be read ({error}): pip install 'jaxrec[data]'"
        ) from error

    class Unpickler(pickle_compat.Unpickler):  # knows the old names of pandas' classes
        def find_class(self, module: str, name: str) -> Any:
            if name not in ALLOWED.get(module, ()):
                raise UserError(
                    f"{path} would call {module}.{name}, which no table needs: it is "
                    "not opened, since such files can run any code"
                )
            # Before pandas 0.20, and no longer among the names that pandas knows.
            module = module.replace("pandas.indexes", "pandas.core.indexes")
            found = super().find_class(module, name)
            return _validated(found) if name == "_restore_array" else found

    try:
        with open(path, "rb") as file:
            frame = Unpickler(file).load()
        return {str(name): frame[name].to_numpy() for name in frame.columns}
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise whatever their last bytes say
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no pickled table ({type(error).__name__}: {reason}): fetch it "
            "again, or export it to csv and use data.source=table"
        ) from error


def _validated(restore):
    """pyarrow trusts the offsets that a file gives; wrong ones read foreign memory."""

    def checked(data: Any) -> Any:
        array = restore(data)
        array.validate(full=True)
        return array

    return checked


def _events(path: Path, columns: Mapping[str, np.ndarray]) -> Events:
    if "is_buy" not in columns:
        logs.say(f"{path} has no is_buy: all of its events count as clicks")
    if "action" in columns or "next" in columns:
        return _transitions(path, columns)
    found = {
        role: next((columns[n] for n in names if n in columns), None)
        for role, names in NAMES.items()
    }
    if missing := [role for role in ("session", "item") if found[role] is None]:
        raise UserError(
            f"{path} has no column {' or '.join(NAMES[missing[0]])}; found "
            f"{', '.join(columns)}"
        )
    bought = found["bought"]
    return events.make(
        found["session"],
        found["item"],
        found["time"],
        bought,
        facts=dict(name=path.parent.name or "buffer", purchase="is_buy"),
    )


def _transitions(path, columns):
    """Sessions again, from rows (state, action, next state, done).

    Rows whose state is the next state of the row before go on with its session. Any
    other row starts one, with the items of its state as history that is not scored.
    Without a column for it the next state is the state with the action; without
    `is_done` sessions end where the next row starts another.
    """
    state, length, action = (
        next((columns[n] for n in names if n in columns), None)
        for names in (("state", "seq"), ("len_state", "len_seq"), ("action", "next"))
    )
    if state is None or length is None:
        raise UserError(
            f"{path} has an action but no state and len_state; found "
            f"{', '.join(columns)}"
        )
    state = _lists(path, "state", state)  # [N, L]
    rows, width = state.shape
    length, action = (_lists(path, *x) for x in (("len", length), ("action", action)))
    length = np.clip(length, 0, width)
    pad = np.arange(width)[None, :] >= length[:, None]
    # An empty history has length 1 and the padding id in its only place.
    blank = state[pad].max() if pad.any() else -1
    length = np.where((length == 1) & (state[:, 0] == blank), 0, length)
    told = "is_done" in columns
    done = columns.get("is_done", np.zeros(rows, bool)).astype(bool)
    if "next_state" in columns:
        after = _lists(path, "next_state", columns["next_state"])
    else:
        after = _pushed(state, length, action)
    starts = np.ones(rows, bool)
    starts[1:] = done[:-1] | (after[:-1] != state[1:]).any(axis=1)
    alone = starts & np.append(starts[1:], True) & ~(done & (length == 0))
    if alone.sum() > rows / 2:
        ends = "is_done says" if told else "nothing says, so that all count as the last"
        logs.say(
            f"{path}: {alone.sum():,} of {rows:,} rows stand alone, as if shuffled: "
            f"whether their sessions go on {ends}; what follows is not known"
        )
    history = np.where(starts, length, 0)  # items before the action of each row
    size = history + 1
    end = np.cumsum(size)
    last = np.zeros(end[-1], bool)
    last[end - 1] = True
    item = np.empty(end[-1], np.int64)
    item[last] = action
    item[~last] = state[np.arange(width)[None, :] < history[:, None]]
    kind = np.zeros(end[-1], np.int8)
    kind[last] = columns.get("is_buy", np.zeros(rows)).astype(np.int8)
    goes_on = np.zeros(end[-1], bool)
    goes_on[last] = told & ~done
    return events.make(
        np.repeat(np.cumsum(starts), size),
        item,
        None,
        kind,
        scored=last,
        goes_on=goes_on if goes_on.any() else None,
        facts=dict(name=path.parent.name or "buffer", purchase="is_buy"),
    )


def _pushed(state, length, action):
    """int64[N, L]: the states with the actions, without the oldest item where full."""
    after, full = state.copy(), length == state.shape[1]
    after[full, :-1], after[full, -1] = state[full, 1:], action[full]
    after[~full, length[~full]] = action[~full]
    return after


def _lists(path, what, values):
    """int64[N] or [N, L] of a column of numbers or lists."""
    try:
        found = np.array(values.tolist())
        with np.errstate(invalid="ignore"):
            whole = found.astype(np.int64)
        if not len(found) or (found != whole).any():
            raise ValueError("not whole numbers" if len(found) else "no rows")
        return whole
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{path}: its {what} cannot be read ({reason}): lists of one length with "
            "the numbers of items are expected"
        ) from error
