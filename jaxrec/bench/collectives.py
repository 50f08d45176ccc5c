"""Bytes that pass between devices, counted in the text of a compiled program.

Of each collective the bytes of its result on one device count, of a reduce-scatter
those that it reads: what an algorithm sends follows from them (a ring sends an
all-reduce of n devices 2 (n - 1) / n times, a gather (n - 1) / n times). Loops count by
their number of rounds where the compiler knows it, and of the branches of a conditional
the one that moves most.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r" = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+[0-9]+)[a-z0-9]*\[([\d,]*)\]")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INSIDE = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+)"
)


class Line(NamedTuple):
    """One instruction: its result, such as f32[8,64], its name, and what follows."""

    result: str
    opcode: str
    rest: str


def traffic(text: str, share: float = 1.0) -> Counter:
    """Kind of collective -> bytes on a device, in one run of a program.

    text: `compiled.as_text()`. `share`: of the loops whose rounds are not known when
    the program is compiled; of two of which one runs once and the other never, 0.5.
    """
    parts, entry = computations(text)
    found: dict[str, Counter] = {}

    def of(name: str) -> Counter:
        if name not in found:
            found[name] = Counter()
            for line in parts.get(name, ()):
                for kind, size in _of_line(line, of, share).items():
                    found[name][kind] += size
        return found[name]

    return Counter({kind: round(size) for kind, size in of(entry).items() if size})


def _of_line(line: Line, of: Any, share: float) -> Mapping[str, float]:
    kind = line.opcode.removesuffix("-start")
    if kind in KINDS:
        return {kind: moved(line)}
    if line.opcode == "conditional":
        names = [
            name.strip().lstrip("%")
            for several, one in _BRANCHES.findall(line.rest)
            for name in (several or one).split(",")
        ]
        return max(map(of, names), key=lambda c: sum(c.values()))
    if line.opcode not in ("while", "call", "async-start"):
        return {}
    rounds = 1.0
    if line.opcode == "while":
        known = _ROUNDS.search(line.rest)
        rounds = float(known[1]) if known else share
    return {
        kind: rounds * size
        for name in _INSIDE.findall(line.rest)
        for kind, size in of(name).items()
    }


def moved(line: Line) -> int:
    """Bytes of a collective, see the module."""
    sizes = list(shapes(line.result))
    if line.opcode in ("all-gather-start", "collective-permute-start"):
        return sizes[1]  # what is sent, what arrives, and tokens
    if line.opcode.startswith("reduce-scatter"):
        return sum(sizes) * group_size(line.rest)
    return sum(sizes)


def shapes(result: str) -> Iterator[int]:
    """Bytes of each array of a result such as (f32[8,64]{1,0}, s32[8])."""
    for dtype, dims in _SHAPE.findall(result):
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        size = 1
        for n in filter(None, dims.split(",")):
            size *= int(n)
        yield -(-size * bits // 8)


def group_size(rest: str) -> int:
    """Devices that take part together: replica_groups={{0,1},...}, [4,2]<=[8] or
    mesh['axis_0'=4,'axis_1'=2] {'axis_1'}."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(pair.split("=") for pair in named[1].split(","))
        total = 1
        for axis in named[2].split(","):
            total *= int(sizes[axis.strip()])
        return total
    raise ValueError(f"no replica groups in {rest[:200]!r}")


def computations(text: str) -> tuple[dict[str, list[Line]], str]:
    """(name -> its instructions, name of the entry) of a program's text."""
    found: dict[str, list[Line]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name and (match := _LINE.search(line)):
            found[name].append(Line(*match.groups()))
    return found, entry
