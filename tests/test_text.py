"""Columns out of delimited text: formats, types, times, and the line at fault."""

import csv
import gzip
import io
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import text, times
from jaxrec.types import UserError


@pytest.fixture
def write(tmp_path):
    def write(content, name="log.csv"):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_types_and_line_ends(write, name, end):
    lines = ["u,i,r,t,w", "1,7,4.5,1000,view", "-2,007,1e-1,1000.5,", "", "3,9,5,1,ä"]
    path = write("\ufeff" + end.join(lines), name)  # a byte order mark, no last end
    kinds = dict(u="int", i="id", r="float", t="time", w="text")
    found = text.read(path, kinds, ",")
    assert found["u"].tolist() == [1, -2, 3] and found["u"].dtype == np.int64
    assert found["i"].tolist() == [b"7", b"007", b"9"]  # 007 is another id than 7
    assert found["r"].tolist() == [4.5, 0.1, 5]
    assert found["t"].tolist() == [1000, 1000.5, 1]
    assert text.decode(found["w"]).tolist() == ["view", "", "ä"]
    assert text.header(path, ",") == ["u", "i", "r", "t", "w"]


def test_columns_in_any_order_without_a_header_and_with_long_delimiters(write):
    path = write("1::50::a b\n2::60::c\n")
    found = text.read(path, dict(c="text", a="int"), "::", ["a", "b", "c"])
    assert found["a"].tolist() == [1, 2] and found["c"].tolist() == [b"a b", b"c"]
    # A layout may have further columns than the names that are known, not fewer.
    path = write("1\t2\t3\n4\t5\t6\n")
    assert text.read(path, dict(b="int"), "\t", ["a", "b"])["b"].tolist() == [2, 5]
    with pytest.raises(UserError, match="line 1 has 3 columns, 'd' should be number 4"):
        text.read(path, dict(d="int"), "\t", ["a", "b", "c", "d"])


def test_quoted_fields(write):
    path = write('i,title\n1,"Usual, ""The"" Suspects"\n\n2,"two\nlines"\n3,plain\n')
    found = text.read(path, dict(i="int", title="text"), ",")
    assert found["i"].tolist() == [1, 2, 3]
    assert found["title"].tolist() == [
        b'Usual, "The" Suspects',
        b"two lines",
        b"plain",
    ]
    path = write('i,title\n1,"two\nlines"\nx,"bad"\n')
    with pytest.raises(UserError, match="line 4: column 'i' is 'x'"):
        text.read(path, dict(i="int"), ",")
    path = write('i,title\n1,"never closed\n' + "2,b\n" * 100_000)
    with pytest.raises(UserError, match="line 2: a quote .*closed"):
        text.read(path, dict(i="int"), ",")


FIELD = st.text(st.characters(codec="ascii", exclude_characters="\r\n\x1f\x00"))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-(10**17), 10**17), FIELD), min_size=1),
    block=st.integers(1, 40),
)
def test_as_the_csv_module_reads_it_in_blocks_of_any_size(
    tmp_path_factory, rows, block
):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows([("n", "word"), *rows])
    path.write_text(stream.getvalue(), newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        found = text.read(path, dict(n="int", word="text"), ",")
    assert found["n"].tolist() == [n for n, _ in rows]
    assert text.decode(found["word"]).tolist() == [word for _, word in rows]


def test_ids_are_text_when_a_later_block_has_a_word(write, monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 8)
    path = write("i,n\n1,1\n2,2\n3,3\nx9,4\n")
    found = text.read(path, dict(i="id", n="id"), ",")
    assert found["i"].tolist() == [b"1", b"2", b"3", b"x9"]
    assert found["n"].tolist() == [1, 2, 3, 4]
    for empty in ("i,n\nx9,1\n2,2\n3,3\n,4\n", "i,n\n1,1\n2,2\n3,3\n,4\n"):
        with pytest.raises(UserError, match="line 5: column 'i' is empty, not an id"):
            text.read(write(empty), dict(i="id"), ",")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), min_size=1))
def test_iso_times_are_those_of_datetime(moments):
    spelled = [t.isoformat() + "Z" * (t.second % 2) for t in moments]
    spelled += [t.isoformat(" ", "milliseconds") + "+00:00" for t in moments]
    found, bad = times.iso_seconds(np.array(spelled, "S"))
    assert not bad.any()
    epoch = datetime(1970, 1, 1)
    exact = [(t - epoch) / timedelta(seconds=1) for t in moments]
    np.testing.assert_allclose(found[: len(moments)], exact, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[len(moments) :], exact, rtol=0, atol=1e-3)


def test_iso_times_by_hand():
    good = [b"2014-04-07T10:51:09.277Z", b"2014-04-07 10:51:09", b"2014-04-07"]
    found, bad = times.iso_seconds(np.array(good))
    second = datetime(2014, 4, 7, 10, 51, 9, tzinfo=UTC).timestamp()
    assert found.tolist() == [second + 0.277, second, second - 39069] and not bad.any()
    wrong = [b"2014-13-07", b"2014-04-07T25:00:00", b"07.04.2014", b"", b"soon"]
    wrong += [b"2014-04-07T10:51:09x", b"2014-04-07T10:51:09.2x", b"2014-02-30"]
    wrong += [b"2014-04-07T10:51", b"2014-04-07T10:51:09+02:00"]
    assert times.iso_seconds(np.array(wrong))[1].all()


@pytest.mark.parametrize(
    "kind, value, message",
    [
        ("int", "x", "'x', not a whole number"),
        ("int", "1.5", "'1.5', not a whole number"),
        ("int", "", "empty, not a whole number"),
        ("int", "-", "'-', not a whole number"),
        ("int", "9" * 19, "'9*', not a whole number"),
        ("float", "a", "'a', not a number"),
        ("float", "nan", "'nan', not a number"),
        ("float", "", "empty, not a number"),
        ("time", "NaN", r"'NaN', not a time \(seconds or ISO 8601\)"),
        ("time", "", "empty, not a time"),
        ("time", "inf", "'inf', not a time"),
        ("time", "2014-04-07", "'2014-04-07', not a time"),  # among seconds
    ],
)
def test_the_line_at_fault_is_named(write, kind, value, message):
    path = write(f"a,x\n1,1\n2,2\n\n3,{value}\n4,4\n")
    with pytest.raises(UserError, match=f"line 5: column 'x' is {message}"):
        text.read(path, dict(x=kind), ",")


def test_a_bad_line_among_a_million(write):
    good = b"12345,678,1400000000,view\n" * 500_000
    names = b"s,i,t,e\n"
    wanted = dict(s="id", i="int", t="time", e="text")
    path = write(names + good + b"12345,6x8,1400000000,view\n" + good)
    with pytest.raises(UserError, match="line 500002: column 'i' is '6x8'"):
        text.read(path, wanted, ",")
    path = write(names + good + b"12345,678,1400000000\n" + good)
    with pytest.raises(UserError, match="line 500002 has 3 columns where 4 are"):
        text.read(path, wanted, ",")


def test_unknown_columns_are_named_with_those_found(write):
    path = write("session,item\n1,2\n")
    with pytest.raises(UserError, match="no column 'sid', 'x'; found session, item"):
        text.read(path, dict(sid="id", item="id", x="id"), ",")


def test_empty_missing_damaged(write, tmp_path):
    for content in ("", "\ufeff"):
        with pytest.raises(UserError, match="is empty"):
            text.read(write(content), dict(a="int"), ",")
        with pytest.raises(UserError, match="is empty"):
            text.read(write(content), dict(a="int"), ",", ["a"])
    with pytest.raises(UserError, match="is empty"):
        text.header(write(""))
    assert len(text.read(write("a,b\n"), dict(a="id"), ",")["a"]) == 0
    with pytest.raises(UserError, match="No such file"):
        text.read(tmp_path / "none.csv", dict(a="int"))
    with pytest.raises(UserError, match="Is a directory"):
        text.read(tmp_path, dict(a="int"))
    with pytest.raises(UserError, match="Git LFS pointer"):
        text.read(write("version https://git-lfs.github.com/spec/v1\n"), dict(a="int"))
    packed = gzip.compress(b"a\n" + bytes(range(48, 58)) * 1000)
    path = write(packed[: len(packed) // 2], "cut.csv")
    with pytest.raises(UserError, match="is damaged .*fetch it again"):
        text.read(path, dict(a="int"))


def test_ragged_lines(write):
    line, token = text.ragged(write("1 2\t3\r\n\n  4   5 \n6", "x.txt"))
    assert line.tolist() == [1, 1, 1, 3, 3, 4]
    assert token.tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="line 2: 'a7' is not a whole number"):
        text.ragged(write("1 2\n3 a7\n", "x.txt"))
    for content in ("", "\n \n"):
        with pytest.raises(UserError, match="is empty"):
            text.ragged(write(content, "x.txt"))


def test_decoding_falls_back_to_latin():
    assert text.decode(np.array(["é".encode("latin-1")])).tolist() == ["é"]
    assert text.decode(np.array(["é".encode()])).tolist() == ["é"]
    assert text.decode(np.array([1])).tolist() == [1]
