"""Columns out of delimited text, tens of millions of lines, without a loop over them.

A block of the file is one array of bytes: separators are found, fields are cut and
digits are summed for all lines at once. A field that cannot be read is reported with
its line. Files that end in .gz are unpacked on the way.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data import times
from jaxrec.data.files import check_file
from jaxrec.types import UserError

BLOCK = 1 << 26  # bytes at a time
NEWLINE, RETURN = 10, 13


def blocks(path: Path, quotes: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines of bytes) until the file ends.

    With `quotes` no block ends between two double quotes.
    """
    check_file(path, "a file of events")
    line, rest = 1, b""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            while block := file.read(BLOCK):
                if line == 1 and not rest:
                    block = block.removeprefix(b"\xef\xbb\xbf")
                end = block.rfind(b"\n") + 1
                if quotes and (rest + block[:end]).count(b'"') % 2:
                    end = 0
                if end:
                    whole = rest + block[:end]
                    yield line, whole
                    line, rest = line + whole.count(b"\n"), block[end:]
                else:
                    rest += block
        if rest:
            yield line, rest + b"\n"
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}): fetch it again") from error


def read(
    path: Path | str,
    wanted: Mapping[str, str],
    delimiter: str = "\t",
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The `wanted` columns {name: type} of a file; its first line is the header.

    Types: "int" int64, "float" float64, "time" float64 seconds (numbers or ISO 8601),
    "text" bytes S, "id" int64 where every value is a whole number, else bytes S.
    `names`: the columns in order, of a file without a header; at least as many as
    each line has. Raises UserError naming missing columns, or the line at fault.
    """
    path = Path(path)
    wanted, found = dict(wanted), {name: [] for name in wanted}
    while True:
        try:
            heads = names
            for line, block in blocks(path, quotes=delimiter == ","):
                if len(delimiter) > 1:
                    block = block.replace(delimiter.encode(), b"\t")
                separator = delimiter if len(delimiter) == 1 else "\t"
                if heads is None:
                    first, _, block = block.partition(b"\n")
                    heads, line = _header(path, first, separator), line + 1
                _check_names(path, heads, wanted)
                cut = _fields(path, block, separator, line, heads, names is not None)
                for name, kind in wanted.items():
                    found[name].append(
                        _convert(path, name, kind, cut, heads.index(name))
                    )
            if not all(found.values()):  # not one block
                raise UserError(f"{path} is empty")
            return {name: _join(values) for name, values in found.items()}
        except _NotWhole as error:
            wanted[error.args[0]] = "word"  # and read all blocks again
            found = {name: [] for name in wanted}


def header(path: Path | str, delimiter: str = "\t") -> list[str]:
    """The names in the first line of a file."""
    for _, block in blocks(Path(path)):
        return _header(path, block.partition(b"\n")[0], delimiter)
    raise UserError(f"{path} is empty")


def ragged(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """(line number int64[M], token int64[M]) of lines of whole numbers."""
    path = Path(path)
    lines, tokens = [], []
    for line, block in blocks(Path(path)):
        buffer = np.frombuffer(block, np.uint8)
        space = (buffer == 32) | ((buffer >= 9) & (buffer <= 13))
        place = np.flatnonzero(space)
        start = np.concatenate([[0], place[:-1] + 1])
        number = line + np.cumsum(buffer[place] == NEWLINE) - (buffer[place] == NEWLINE)
        real = place > start
        start, end, number = start[real], place[real], number[real]
        value, bad = _whole(buffer, start, end)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            shown = _show(block[start[row] : end[row]])
            raise UserError(
                f"{path} line {number[row]}: {shown} is not a whole number: fix or "
                "remove the line"
            )
        lines.append(number)
        tokens.append(value)
    if not tokens or not sum(map(len, tokens)):
        raise UserError(f"{path} is empty")
    return np.concatenate(lines), np.concatenate(tokens)


def decode(values: np.ndarray) -> np.ndarray:
    """Bytes S[N] as text U[N]; other arrays as they are."""
    if values.dtype.kind != "S":
        return values
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError:
        return np.char.decode(values, "latin-1")


class _NotWhole(Exception):
    """The named column of ids has one that is no whole number."""


def _header(path, first, delimiter):
    row = first.decode("utf-8", "replace").rstrip("\r")
    try:
        names = next(csv.reader([row], delimiter=delimiter))
    except csv.Error as error:  # lines that end in a return alone, for one
        raise UserError(
            f"{path} line 1 is no header ({error}): write the names of the columns and "
            "end each line with a newline"
        ) from error
    return [name.strip() for name in names]


def _check_names(path, header, wanted):
    missing = [name for name in wanted if name not in header]
    if missing:
        remedy = "name the right ones in config.data.columns"
        if len(header) == 1:
            remedy += ", or what separates them in config.data.delimiter"
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; found "
            f"{', '.join(header)}: {remedy}"
        )


def _fields(path, block, delimiter, line, header, optional):
    """(block, buffer, starts int64[N, C], ends, line numbers int64[N])."""
    number = None
    if b'"' in block and delimiter == ",":
        block, number = _unquote(path, block, line)
        delimiter = "\x1f"
    buffer = np.frombuffer(block, np.uint8)
    place = np.flatnonzero((buffer == NEWLINE) | (buffer == ord(delimiter)))
    start = np.concatenate([[0], place[:-1] + 1]) if len(place) else place
    last = np.flatnonzero(buffer[place] == NEWLINE)
    count = np.diff(last, prepend=-1)
    number = line + np.arange(len(last)) if number is None else number
    length = place[last] - start[last]
    blank = (count == 1) & (
        (length == 0) | ((length == 1) & (buffer[start[last]] == RETURN))
    )
    if blank.any():
        keep = np.repeat(~blank, count)
        place, start = place[keep], start[keep]
        count, number = count[~blank], number[~blank]
    columns = len(header)
    if optional and len(count):  # known layouts may have further columns, or fewer
        columns = int(np.bincount(count).argmax())
    if (count != columns).any():
        row = int(np.flatnonzero(count != columns)[0])
        raise UserError(
            f"{path} line {number[row]} has {count[row]} columns where {columns} are "
            "expected: fix or remove the line"
        )
    start, end = start.reshape(-1, columns), place.reshape(-1, columns)
    if len(end):
        returned = (buffer[end[:, -1] - 1] == RETURN) & (end[:, -1] > start[:, -1])
        end[:, -1] -= returned
    return block, buffer, start, end, number


def _unquote(path, block, line):
    """Quoted fields of csv, cut by a loop: the slow road, for files that need it."""
    source = io.StringIO(block.decode("utf-8", "surrogateescape"), newline="")
    reader = csv.reader(source, strict=True)
    rows, numbers, number = [], [], line
    try:
        for row in reader:
            rows.append("\x1f".join(row).replace("\n", " "))
            numbers.append(number)
            number = line + reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{path} line {number}: a quote is not closed, or not doubled inside "
            f"quotes ({error}): fix or remove the line"
        ) from error
    clean = ("\n".join(rows) + "\n").encode("utf-8", "surrogateescape")
    return clean, np.array(numbers)


def _convert(path, name, kind, cut, column):
    _, buffer, starts, ends, number = cut
    if column >= starts.shape[1] and len(starts):
        raise UserError(
            f"{path} line {number[0]} has {starts.shape[1]} columns, {name!r} should "
            f"be number {column + 1}"
        )
    if not len(starts):
        return np.zeros(0, np.float64 if kind in ("float", "time") else np.int64)
    start, end = starts[:, column], ends[:, column]
    if kind == "text":
        return _cut(buffer, start, end)
    if kind == "word":
        value, bad, what = _cut(buffer, start, end), start == end, "an id"
    elif kind in ("int", "id"):
        value, bad = _whole(buffer, start, end)
        if kind == "id":
            zeros = (buffer[start] == ord("0")) & (end - start > 1)  # "007" is not 7
            if (bad | zeros).any():
                if (end == start).any():
                    bad = end == start
                else:
                    raise _NotWhole(name)
        what = "a whole number" if kind == "int" else "an id"
    else:
        convert = times.numbers if kind == "float" else times.seconds
        value, bad = convert(_cut(buffer, start, end))
        what = "a number" if kind == "float" else "a time (seconds or ISO 8601)"
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        shown = _show(buffer[start[row] : end[row]].tobytes())
        raise UserError(
            f"{path} line {number[row]}: column {name!r} is {shown}, not {what}: fix "
            "or remove the line"
        )
    return value


def _cut(buffer, start, end):
    """Bytes S[N] of the fields."""
    length = end - start
    width = max(int(length.max()), 1)
    out = np.zeros((width, len(start)), np.uint8)
    for place in range(width):
        out[place] = buffer[np.minimum(start + place, len(buffer) - 1)]
        out[place][place >= length] = 0
    return np.ascontiguousarray(out.T).view(f"S{width}").reshape(-1)


def _whole(buffer, start, end):
    """int64[N] and bool[N] of the fields that are no whole numbers."""
    negative = buffer[start] == ord("-")
    first = start + negative
    length = end - first
    bad = (length < 1) | (length > 18)
    value = np.zeros(len(start), np.int64)
    for place in range(min(int(length.max(initial=0)), 18)):
        inside = place < length
        digit = buffer[np.minimum(first + place, len(buffer) - 1)] - np.uint8(48)
        bad |= inside & (digit > 9)  # unsigned: characters below 0 wrap to large ones
        value = np.where(inside, value * 10 + digit, value)
    return np.where(negative, -value, value), bad


def _join(values: list[Any]):
    filled = [value for value in values if len(value)]
    return np.concatenate(filled) if filled else values[0]


def _show(raw):
    return repr(raw[:40].decode("utf-8", "replace")) if raw else "empty"
