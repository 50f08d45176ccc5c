"""python -m jaxrec.bench.serving [--encoder=mamba2] [--layers=2] [--items=20000]

What an event costs after histories of 100 to 100,000 events: p50 and p99 of a step,
with the product with the catalogue and the top 10, and the bytes that a user takes.
Random items, untrained parameters of RecMamba's sizes: time does not depend on either.
Users of all lengths are served in turn, so that a busy machine slows all alike.

With --window=50 what `jaxrec.recommend` takes for a history of as many events instead,
which it reads anew each time: any encoder, one history a call and `BATCH` of them, from
ids to ids, with the cold call that compiles apart. With --index=faiss the same by an
approximate index too, and its recall of the untrained items, the hardest there are.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrec import index as index_lib
from jaxrec import recommend, recommender, serving
from jaxrec.bench import timing
from jaxrec.errors import UserError, fail
from jaxrec.methods import ce, ranked
from jaxrec.models import recommender as networks
from jaxrec.types import TrainState

LENGTHS = (100, 1_000, 10_000, 100_000)
BATCH = 32  # histories of one call, of windows
K = 10


def network_of(
    encoder: str, layers: int, items: int, seq_len: int = 10
) -> tuple[networks.Recommender, Any]:
    """(network, params) of RecMamba's sizes, in recommended blocks, untrained."""
    config = ConfigDict(ce.HPARAMS)
    config.encoder.update(name=encoder, num_layers=layers, scale_embedding=1)
    info = dict(vocab=items + 1, num_items=items, seq_len=seq_len)
    network = networks.make(config, info)
    one = np.ones((1, seq_len), np.int32)
    params = jax.jit(network.init)(jax.random.key(0), one, np.ones(1, np.int32))
    return network, params


def measure_windows(
    encoder: str, layers: int, items: int, seq_len: int, rounds: int, index: str = ""
) -> list[str]:
    """The lines of the table of `recommend.top`; with an index also by it."""
    network, params = network_of(encoder, layers, items, seq_len)
    draw, ids = np.random.default_rng(0), np.arange(items + 1)
    facts = dict(vocab=items + 1, num_items=items, seq_len=seq_len, item_ids=ids)
    facts |= dict(item_count=np.ones(items + 1), titles=None, mask_seen=False)
    method = ranked.make_scores(network, facts)
    state = TrainState(np.int32(0), params, None)
    model = recommender.make(method, jax.device_put(state), facts)
    models = {"all scored": model}
    if index:
        factors, begun = ranked.make_factors(network, facts), time.process_time()
        made = index_lib.build(
            jax.jit(factors.query), *factors.items(state), items, index
        )
        models[index] = model._replace(index=made)
        print(f"{index}: built in {time.process_time() - begun:.1f} CPU-s")
    lines = ["histories a call | cold ms | p50 ms | p99 ms | CPU-ms a history"]
    for (name, model), rows in itertools.product(models.items(), (1, BATCH)):
        found = []
        for _ in range(rounds + 1):
            histories = draw.integers(1, items + 1, (rows, seq_len)).tolist()
            wall, cpu = time.perf_counter(), time.process_time()
            recommend.top(model, histories, K)
            found.append((time.perf_counter() - wall, time.process_time() - cpu))
        wall, cpu = 1e3 * np.array(found).T
        p50, p99 = np.percentile(wall[1:], [50, 99])
        own = np.median(cpu[1:]) / rows
        times = f"{wall[0]:.0f} | {p50:.3f} | {p99:.3f} | {own:.3f}"
        lines.append(f"{rows}, {name} | {times}")
    if index:
        asked = draw.integers(1, items + 1, (200, seq_len)).tolist()
        exact, near = (recommend.top(model, asked, K) for model in models.values())
        shared = [
            len({x.id for x in a} & {x.id for x in b}) for a, b in zip(exact, near)
        ]
        lines.append(f"recall@{K} of {index}: {np.mean(shared) / K:.3f}")
    return lines


def measure(model: serving.Model, users: int, rounds: int) -> list[str]:
    """The lines of the table; `users`: rows that the states have."""
    draw, items = np.random.default_rng(0), model.network.num_items
    states = serving.empty(model, users)

    def feed(row: int, count: int) -> float:
        """Milliseconds that `count` events of the user in `row` take."""
        nonlocal states
        given = draw.integers(1, items + 1, (1, count)).astype(np.int32)
        rows, length = np.array([row], np.int32), np.array([count], np.int32)
        begun = time.perf_counter()
        states, _, best = serving.advance_rows(model, states, rows, given, length, K)
        np.asarray(best)
        return 1e3 * (time.perf_counter() - begun)

    for size in (1, serving.LONGEST):
        feed(len(LENGTHS), size)
    prefill = []
    for row, length in enumerate(LENGTHS):
        pieces = [feed(row, serving.LONGEST) for _ in range(length // serving.LONGEST)]
        rest = [feed(row, 1) for _ in range(length % serving.LONGEST)]
        prefill.append((sum(pieces) + sum(rest)) / length)
    steps = np.array(
        [[feed(row, 1) for row in range(len(LENGTHS))] for _ in range(rounds)]
    )
    lines = ["events before | p50 ms | p99 ms | ms an event of the history"]
    for row, length in enumerate(LENGTHS):
        p50, p99 = np.percentile(steps[:, row], [50, 99])
        lines.append(f"{length:,} | {p50:.3f} | {p99:.3f} | {prefill[row]:.3f}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description="Cost of an event by history.")
    parser.add_argument("--encoder", default="mamba2", help="mamba, mamba2")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--items", type=int, default=20_000, help="in the catalogue")
    parser.add_argument("--users", type=int, default=1_000, help="with a state")
    parser.add_argument("--rounds", type=int, default=1_000, help="steps a user")
    parser.add_argument("--window", type=int, default=0, help="events; 0 = a stream")
    parser.add_argument("--index", default="", help="with --window: faiss, beside all")
    given = parser.parse_args(argv)
    least = dict(layers=1, items=K, users=len(LENGTHS) + 1, rounds=1, window=0)
    for field, fewest in least.items():
        if getattr(given, field) < fewest:
            parser.error(f"--{field}: {getattr(given, field)} is not {fewest} or more")
    print(f"{timing.machine()}; {given.encoder}, {given.layers} layers")
    try:
        if given.window:
            sizes = given.encoder, given.layers, given.items, given.window
            print("\n".join(measure_windows(*sizes, given.rounds, given.index)))
            return 0
        model = serving.make(*network_of(given.encoder, given.layers, given.items))
    except UserError as error:
        return fail(error)
    leaves = jax.tree.leaves(serving.empty(model, 1))
    parameters = model.params["params"]["encoder"]
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    print(f"{count:,} parameters in the encoder, {given.items:,} items")
    size = sum(leaf.nbytes for leaf in leaves)
    print(f"{size:,} bytes a user, {size // given.layers:,} a layer")
    print("\n".join(measure(model, given.users, given.rounds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
