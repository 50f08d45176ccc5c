"""What a compiled program says of a catalogue that the mesh splits."""

import re

import jax
import numpy as np

from jaxrec import sharding, train
from jaxrec.data import loader

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
FOUND = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")


def whole_catalogue(program, vocab):
    """Lines of a program that give every device something of all `vocab` items.

    `vocab` is to be a number that is nothing else in the program. Results of fewer than
    two dimensions, such as a count of each item, do not matter.
    """
    lines = []
    for line in program.as_text().splitlines():
        if (match := FOUND.search(line)) is None:
            continue
        shapes = re.findall(r"\[([\d,]*)\]", match[1])
        sizes = [[int(n) for n in shape.split(",") if n] for shape in shapes]
        if any(vocab in size and len(size) > 1 for size in sizes):
            lines.append(line.strip()[:200])
    return lines


def widest(program):
    """The largest dimension of what collectives give every device, of two or more."""
    text = [FOUND.search(line) for line in program.as_text().splitlines()]
    shapes = [s for m in text if m for s in re.findall(r"\[([\d,]*)\]", m[1])]
    sizes = [[int(n) for n in shape.split(",")] for shape in shapes if "," in shape]
    return max(map(max, sizes), default=0)


def step_program(stage, earlier):
    """(abstract state, compiled program) of one update; nothing is executed."""
    state = train.abstract_state(stage, earlier)
    batch = loader.host_batch(stage.dataset, stage.config.batch_size, np.uint32(0), 0)
    data = jax.tree.map(lambda x: np.asarray(x)[None], batch)
    return state, train.compiled(stage, True, 1, state, data)


def split_leaves(state, vocab):
    """Paths of the leaves that have the catalogue, and of those that are split."""
    own, split = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if vocab in leaf.shape:
            name = sharding.path_name(path)
            own.append(name)
            shard = leaf.sharding.shard_shape(leaf.shape)
            split += [name] * (vocab not in shard)
    return own, split
