"""Times as seconds since 1970: from ISO 8601, from numpy's and from plain numbers."""

import numpy as np

DAYS = np.array([31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


def seconds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [N] (int64 where exact, else float64) and bool[N] of bad ones.

    `values`: numbers, datetime64, or text (numbers or ISO 8601), also as objects.
    """
    if values.dtype.kind == "O":
        values = np.array([str(v) for v in values.tolist()])
    if values.dtype.kind == "M":
        bad = np.isnat(values)
        return values.astype("datetime64[us]").astype(np.int64) / 1e6, bad
    if values.dtype.kind in "iub":
        return values.astype(np.int64), np.zeros(len(values), bool)
    if values.dtype.kind == "f":
        return values, ~np.isfinite(values)
    if values.dtype.kind == "U":
        values = np.char.encode(values, "utf-8")
    found, bad = numbers(values)
    if bad.any() and len(values) and b"-" in values[0][4:5]:
        return iso_seconds(values)
    return found, bad


def numbers(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[N] of bytes [N], and bool[N] of those that are no finite numbers.

    Only the first bad one is sure to be marked.
    """
    try:
        value = text.astype(np.float64)
    except ValueError:
        value = np.zeros(len(text))
        for row, field in enumerate(text):  # only to find the one at fault
            try:
                value[row] = float(field)
            except ValueError:
                value[row] = np.nan
                break
    return value, ~np.isfinite(value)


def iso_seconds(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 float64[N] of ISO 8601 bytes [N], and bool[N] of bad ones.

    "2014-04-07T10:51:09.277Z", with a space for the T, without fraction, with +00:00
    or nothing for Z, or a date alone; times are taken as UTC.
    """
    width = max(text.dtype.itemsize, 34)
    raw = text.astype(f"S{width}").view(np.uint8).reshape(len(text), width)
    bad = np.zeros(len(text), bool)

    def number(first: int, count: int, low: int = 0, high: int = 9999) -> np.ndarray:
        digits = raw[:, first : first + count].astype(np.int64) - 48
        value = digits @ 10 ** np.arange(count)[::-1]
        bad[(digits < 0).any(1) | (digits > 9).any(1)] = True
        bad[(value < low) | (value > high)] = True
        return value

    year, month, day = number(0, 4), number(5, 2, 1, 12), number(8, 2, 1, 31)
    bad |= (raw[:, 4] != ord("-")) | (raw[:, 7] != ord("-"))
    month = np.where(bad, 1, month)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    bad |= day > DAYS[month - 1] - ((month == 2) & ~leap)
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1
    raw[raw[:, 10] == 0, 10:19] = np.frombuffer(b"T00:00:00", np.uint8)
    hour, minute, second = number(11, 2, 0, 23), number(14, 2, 0, 59), number(17, 2)
    bad |= second > 60  # a leap second
    clock = hour * 3600 + minute * 60 + second
    bad |= (raw[:, 10] != ord("T")) & (raw[:, 10] != ord(" "))
    bad |= (raw[:, 13] != ord(":")) | (raw[:, 16] != ord(":"))
    fraction, rest = np.zeros(len(text)), np.full(len(text), 19)
    inside, scale = raw[:, 19] == ord("."), 0.1
    rest += inside
    for place in range(20, width):
        inside = inside & (raw[:, place] >= 48) & (raw[:, place] <= 57)
        fraction += np.where(inside, (raw[:, place] - 48.0) * scale, 0)
        rest += inside
        scale /= 10
    at = np.minimum(rest[:, None] + np.arange(7)[None, :], width - 1)
    zone = np.take_along_axis(raw, at, axis=1)
    zone[(rest[:, None] + np.arange(7)[None, :]) >= width] = 0
    allowed = [np.frombuffer(z.ljust(7, b"\0"), np.uint8) for z in ZONES]
    bad |= ~np.any([(zone == z[None, :]).all(axis=1) for z in allowed], axis=0)
    return days * 86400.0 + clock + fraction, bad


ZONES = (b"", b"Z", b"+00:00", b"+00", b"+0000")
