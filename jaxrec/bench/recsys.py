"""Speed of the Q-learning recommenders: `python -m jaxrec.bench.recsys [--json]`.

Per method, at the same sizes and in the same process, the loop as users run it (many
updates a call, data and sampling on the device, values gathered for the items that a
loss needs), eight seeds of it in one program, and the naive loop of `recsys_naive`.
Then the parts: an epoch of SASRec at the sizes of ML-100K, full ranking of the test
prefixes, full and sampled softmax of large catalogues.

CPU-ms are of all threads of this process; on a machine shared with others pin it to
one core: `taskset -c 1 python -m jaxrec.bench.recsys`.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import program, seeds, sharding
from jaxrec.bench import recsys_naive, recsys_parts, timing
from jaxrec.data import loader
from jaxrec.methods import ce, sa2c, snqn, sqn
from jaxrec.types import Dataset

MODULES = dict(ce=ce, sqn=sqn, snqn=snqn, sa2c=sa2c)
CALLS = 50  # updates of one measured call of ours, as users' default
NAIVE_CALLS = 4
PREFIXES = 15_132  # test pairs of retailrocket-clicks


def sessions(
    item: np.ndarray, timestep: np.ndarray, num_items: int, seq_len: int
) -> Dataset:
    """Events of sessions one after another, of which one in 25 is a purchase."""
    draw = np.random.default_rng(1)
    kind = (draw.uniform(size=len(item)) < 0.04).astype(np.int32)
    done = np.append(timestep[1:] == 0, True)
    train = dict(
        item=item,
        kind=kind,
        reward=np.where(kind == 1, 1.0, 0.2).astype(np.float32),
        timestep=timestep,
        next_item=np.where(done, 0, np.roll(item, -1)).astype(np.int32),
        done=done.astype(np.float32),
        reward_to_go=np.ones(len(item), np.float32),
        remaining=np.zeros(len(item), np.int32),
    )
    vocab = -(-(num_items + 1) // 128) * 128
    info = dict(
        num_items=num_items,
        vocab=vocab,
        seq_len=seq_len,
        item_count=np.bincount(item, minlength=vocab).astype(np.float64),
        rewards=(0.2, 1.0),
        kinds=("click", "purchase"),
        mask_seen=False,
        name="bench",
    )
    return Dataset(train, {}, info, seq_len + 1)


def dataset(num_items: int, num_events: int, seq_len: int) -> Dataset:
    """Sessions of six events, items by a Zipf-like popularity."""
    draw = np.random.default_rng(0)
    item = np.minimum(
        (num_items ** draw.uniform(size=num_events)).astype(np.int32), num_items
    )
    timestep = (np.arange(num_events) % 6).astype(np.int32)
    return sessions(item, timestep, num_items, seq_len)


def build(
    name: str, data: Dataset, batch_size: int, num_seeds: int = 1, **fields: Any
) -> Any:
    """(stage, config) of a method at its papers' sizes; `fields` of its config."""
    section = ConfigDict(MODULES[name].HPARAMS | dict(steps=10**6, batch_size=256))
    section.update_from_flattened_dict(fields)
    method = MODULES[name].make(FrozenConfigDict(section), data.info)
    loop = ConfigDict(
        dict(
            steps=10**6 // CALLS * CALLS,
            batch_size=batch_size,
            log_every=CALLS,
            eval_every=CALLS,
            checkpoint_every=CALLS,
            steps_per_call=CALLS,
        )
    )
    mesh = sharding.make_mesh(1, 1)
    stage = program.Stage("bench", loop, method, data, 0, num_seeds, mesh)
    return stage, section


def fused(stage: program.Stage) -> tuple[Callable[[], Any], dict[str, Any], dict]:
    """CALLS updates as users run them, facts of the program, {"state": its state}."""
    batch = loader.host_batch(stage.dataset, stage.config.batch_size, np.uint32(0), 0)
    init = seeds.vmap_init(stage.method.init, stage.num_seeds)
    state = jax.jit(init)(program.streams(stage)[0], batch, {})
    arrays = next(program.feed(stage, 0, streamed=False))
    step = jax.jit(program.multi_step(stage, streamed=False), donate_argnums=0)
    compiled, seconds = timing.compiled(step.lower(state, arrays))
    held = {"state": state}

    def run() -> Any:
        held["state"], metrics = compiled(held["state"], arrays)
        return metrics

    facts = timing.memory(compiled) | dict(compile_seconds=round(seconds, 1))
    return run, facts, held


def against_naive(name: str, data: Dataset, args: Any) -> dict[str, Any]:
    """CPU-ms an update of ours, the naive loop and with --seeds many in one program."""
    fields = {"encoder.name": args.encoder}
    stage, config = build(name, data, args.batch_size, **fields)
    run, facts, _ = fused(stage)
    slow = recsys_naive.loop(name, stage, config, NAIVE_CALLS)
    rivals = {"ours": (run, CALLS), "naive": (slow, NAIVE_CALLS)}
    if args.seeds > 1:
        many, _ = build(name, data, args.batch_size, args.seeds, **fields)
        rivals["seeds"] = (fused(many)[0], CALLS * args.seeds)
    times = {k: v.ms() for k, v in timing.in_turn(rivals, args.rounds).items()}
    found = facts | {f"{k}_ms": round(v, 1) for k, v in times.items()}
    if "seeds" in times:
        found["seeds_ratio"] = round(times["ours"] / times["seeds"], 2)
    return found | dict(
        ratio=round(times["naive"] / times["ours"], 2),
        steps_per_second=round(1e3 / times["ours"], 1),
        events_per_second=round(1e3 * args.batch_size / times["ours"]),
    )


def epoch(rounds: int) -> dict[str, Any]:
    """SASRec at the sizes of ML-100K: every user's last 50 events, all positions."""
    found, source = recsys_parts.histories()
    item = np.concatenate(found)
    timestep = np.concatenate([np.arange(len(u), dtype=np.int32) for u in found])
    data = sessions(item, timestep, recsys_parts.ITEMS, recsys_parts.LENGTH)
    ends = np.cumsum([len(u) for u in found]).astype(np.int32) - 1
    data = data._replace(drawn=dict(train=ends))
    encoder = dict(name="sasrec", num_layers=2, prenorm="all", dropout=0.2)
    fields = {f"encoder.{k}": v for k, v in encoder.items()}
    stage, _ = build("ce", data, 128, positions="all", **fields)
    updates = -(-len(found) // 128)
    run, facts, _ = fused(stage)
    times = timing.in_turn({"ours": (run, CALLS / updates)}, rounds)
    seconds = times["ours"].ms() / 1e3
    events = updates * 128 * recsys_parts.LENGTH
    return facts | dict(
        data=source,
        users=len(found),
        seconds=round(seconds, 2),
        positions_per_second=round(events / seconds),
    )


def ranking(data: Dataset, args: Any) -> dict[str, float]:
    """CPU-seconds to rank PREFIXES events over the whole catalogue."""
    test = {name: array[:PREFIXES] for name, array in data.train.items()}
    data = data._replace(evals=dict(test=test))
    stage, _ = build("ce", data, args.batch_size, **{"encoder.name": args.encoder})
    batch = loader.host_batch(data, args.batch_size, np.uint32(0), 0)
    state = jax.jit(stage.method.init)(jax.random.key(0), batch, {})
    head = state.params["params"]["ce_head"]
    tables = head["table"], head["bias"]
    return recsys_parts.ranking_times(
        stage.method, state, data, tables, args.num_items, min(args.rounds, 3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="ce,sqn,snqn,sa2c")
    parser.add_argument("--encoder", default="gru")
    parser.add_argument("--num_items", type=int, default=36_968)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seq_len", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1, help="also in one program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="epoch,ranking,softmax")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    methods, parts = (x.split(",") if x else [] for x in (args.methods, args.parts))
    data = dataset(args.num_items, 100_000, args.seq_len)
    found: dict[str, Any] = dict(machine=timing.machine(), num_items=args.num_items)

    def say(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    say(f"{found['machine']}, {args.num_items:,} items, batch {args.batch_size}")
    many = f"  {args.seeds} seeds: ms each  ratio" if args.seeds > 1 else ""
    say("method  ours ms  naive ms  ratio  steps/s  events/s  MB  compile s" + many)
    for name in methods:
        row = found[name] = against_naive(name, data, args)
        many = f" {row['seeds_ms']} {row['seeds_ratio']}" if args.seeds > 1 else ""
        say(
            f"{name:6} {row['ours_ms']:8} {row['naive_ms']:9} {row['ratio']:6} "
            f"{row['steps_per_second']:8} {row['events_per_second']:9} "
            f"{row['temporary_bytes'] / 1e6:4.0f} {row['compile_seconds']:6}" + many
        )
    if "epoch" in parts:
        found["sasrec_epoch"] = epoch(args.rounds)
        say(f"SASRec, an epoch at the sizes of ML-100K: {found['sasrec_epoch']}")
    if "ranking" in parts:
        found["ranking"] = ranking(data, args)
        say(f"ranking of {PREFIXES:,} prefixes, seconds: {found['ranking']}")
    if "softmax" in parts:
        for vocab in (36_992, 1_000_064):
            row = found[f"softmax_{vocab}"] = recsys_parts.softmax_times(vocab, 3)
            say(f"softmax of {vocab:,} items with gradients, ms: {row}")
        row = recsys_parts.softmax_memory(1_000_064, 64, 256, 8_192)
        found["softmax_memory"] = row
        say(f"bytes of cross entropy at 1M items, batch 256: {row}")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
