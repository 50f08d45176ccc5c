"""Strategies of malformed inputs: edited files, odd columns, odd values of fields."""

import numpy as np
from hypothesis import strategies as st

TOKENS = (b"", b'"', b",", b"\t", b"\n", b"\r\n", b"\x00", b"\xff", b"\x1f", b" ", b"#")
TOKENS += (b"nan", b"inf", b"-1", b"-", b"0", b"007", b"9" * 30, b"1e999", b"1.5", b"x")
TOKENS += (b"2014-13-45T99:99:99Z", b"2014-04-07T10:51:09.277Z", b"\xef\xbb\xbf")
TOKENS += ("\u00e9".encode(), "\u2028".encode(), b"buy", b"True", b"1_000", b"\x1f\x8b")


def edits(pieces):
    """Some changes of a file: (what, where, with what)."""
    one = st.tuples(
        st.sampled_from(["put", "over", "cut", "end", "line", "twice", "flip"]),
        st.floats(0, 1),
        st.one_of(st.sampled_from(pieces), st.binary(max_size=6)),
    )
    return st.lists(one, min_size=1, max_size=4)


def edited(content, changes):
    for what, where, piece in changes:
        at = int(where * len(content))
        if what == "put":
            content = content[:at] + piece + content[at:]
        elif what == "over":
            content = content[:at] + piece + content[at + len(piece) :]
        elif what == "cut":
            content = content[:at] + content[at + 1 + len(piece) * 40 :]
        elif what == "end":
            content = content[:at]
        elif what == "flip" and content:
            at = min(at, len(content) - 1)
            byte = content[at] ^ (1 << (len(piece) % 8))
            content = content[:at] + bytes([byte]) + content[at + 1 :]
        else:  # lines
            lines = content.split(b"\n")
            number = min(int(where * len(lines)), len(lines) - 1)
            lines[number : number + 1] = [piece] if what == "line" else lines[:3]
            content = b"\n".join(lines)
    return content


def arrays():
    """What may stand in the place of a column of four rows."""
    kinds = ["f4", "f8", "i4", "i8", "u1", "?", "c8", "U3", "S3", "M8[s]", "f2"]
    shapes = [
        (),
        (0,),
        (4,),
        (3,),
        (4, 1),
        (4, 2),
        (1, 4),
        (4, 0),
        (2, 2, 2),
        (4, 2, 2),
    ]
    values = [0, 1, -1, 2, np.nan, np.inf, 1e39, 1e300]

    def make(kind, shape, value):
        with np.errstate(all="ignore"):
            return np.full(shape, value).astype(kind)

    return st.builds(
        make, st.sampled_from(kinds), st.sampled_from(shapes), st.sampled_from(values)
    )


def columns(good):
    """Columns of which some are missing, others or new."""
    names = st.sampled_from([*good, "timeout", "observation_0", "infos", "extra"])
    changes = st.dictionaries(names, st.one_of(st.none(), arrays()), max_size=3)
    return changes.map(
        lambda new: {k: v for k, v in (good | new).items() if v is not None}
    )


def values(like):
    """What a user may write in the place of a value: mostly of its type."""
    numbers = [0, -1, 1, 2, 10**6, -(10**12), 2**32, 2**63, 10**30]
    if isinstance(like, bool):
        return st.booleans()
    if isinstance(like, int):
        return st.sampled_from(numbers)
    if isinstance(like, float):
        return st.sampled_from(
            [0.0, -0.5, 1.0, 1e300, float("nan"), float("inf"), -1.0]
        )
    if isinstance(like, str):
        return st.one_of(st.text(max_size=8), st.sampled_from(["sqn", "(", "test/x"]))
    leaf = st.one_of(st.sampled_from(numbers), st.text(max_size=5), st.none())
    return st.lists(st.one_of(leaf, st.lists(leaf, max_size=3)), max_size=3).map(tuple)
