"""Speed of the Q-learning recommenders: `python -m jaxrec.bench.recsys [--json]`.

Per method, at the same sizes and in the same process:

- the loop as users run it: many updates a call, data and sampling on the device, values
  gathered for the items that a loss needs;
- the naive loop, as the published TF1 code does it: one dispatch a pass, tables of the
  values of all items [B, V] brought to the host and fed back, negatives drawn there in
  Python, values picked from whole tables.

Both compute the same objective. CPU-ms are of all threads of this process; on a machine
shared with others pin it to one core: `taskset -c 1 python -m jaxrec.bench.recsys`.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import program, sharding
from jaxrec.bench import timing
from jaxrec.data import loader
from jaxrec.losses import softmax
from jaxrec.methods import ce, recommender, sa2c, snqn, sqn
from jaxrec.models import recommender as networks
from jaxrec.types import Dataset

MODULES = dict(ce=ce, sqn=sqn, snqn=snqn, sa2c=sa2c)
CALLS = 4  # updates of one measured call


def dataset(num_items: int, num_events: int, seq_len: int) -> Dataset:
    """Sessions of six events, items by a Zipf-like popularity."""
    draw = np.random.default_rng(0)
    item = np.minimum(
        (num_items ** draw.uniform(size=num_events)).astype(np.int32), num_items
    )
    timestep = (np.arange(num_events) % 6).astype(np.int32)
    kind = (draw.uniform(size=num_events) < 0.04).astype(np.int32)
    done = timestep == 5
    train = dict(
        item=item,
        kind=kind,
        reward=np.where(kind == 1, 1.0, 0.2).astype(np.float32),
        timestep=timestep,
        next_item=np.where(done, 0, np.roll(item, -1)).astype(np.int32),
        done=done.astype(np.float32),
        reward_to_go=np.ones(num_events, np.float32),
        remaining=5 - timestep,
    )
    vocab = -(-(num_items + 1) // 128) * 128
    info = dict(
        num_items=num_items,
        vocab=vocab,
        seq_len=seq_len,
        item_count=np.bincount(item, minlength=vocab).astype(np.float64),
        rewards=(0.2, 1.0),
        name="bench",
    )
    return Dataset(train, {}, info, seq_len + 1)


def build(name: str, data: Dataset, encoder: str, batch_size: int) -> Any:
    """(stage, config) of a method at its papers' sizes."""
    section = ConfigDict(MODULES[name].HPARAMS | dict(steps=10**6, batch_size=256))
    section.encoder.name = encoder
    method = MODULES[name].make(FrozenConfigDict(section), data.info)
    loop = ConfigDict(
        dict(
            steps=10**6,
            batch_size=batch_size,
            log_every=CALLS,
            eval_every=CALLS,
            checkpoint_every=CALLS,
            steps_per_call=CALLS,
        )
    )
    mesh = sharding.make_mesh(1, 1)
    return program.Stage("bench", loop, method, data, 0, 1, mesh), section


def fused(stage: program.Stage) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The loop as users run it, and facts of its compiled program."""
    batch = loader.host_batch(stage.dataset, stage.config.batch_size, np.uint32(0), 0)
    state = jax.jit(stage.method.init)(jax.random.key(0), batch, {})
    arrays = next(program.feed(stage, 0, streamed=False))
    step = jax.jit(program.multi_step(stage, streamed=False), donate_argnums=0)
    compiled, seconds = timing.compiled(step.lower(state, arrays))
    held = {"state": state}

    def run() -> Any:
        held["state"], metrics = compiled(held["state"], arrays)
        return metrics

    facts = timing.memory(compiled) | dict(compile_seconds=round(seconds, 1))
    return run, facts


def naive(name: str, stage: program.Stage, config: Any) -> Callable[[], Any]:
    """The same objective with tables of all items on the host, a dispatch a pass."""
    data = stage.dataset
    network = networks.make(config, data.info, None if name == "ce" else 0)
    adam = optax.adam(config.optim.lr)
    batch = loader.host_batch(data, stage.config.batch_size, np.uint32(0), 0)
    event = jax.jit(recommender.transition)(batch)
    copies = [
        network.init(jax.random.key(i), event.items, event.length) for i in (0, 1)
    ]
    states = [adam.init(params) for params in copies]
    draw = np.random.default_rng(0)
    negatives = config.get("negatives", 0)

    @jax.jit
    def values(params: Any, items: Any, length: Any) -> Any:
        x = recommender.state_of(network, params, items, length)
        return recommender.apply(network, params, "q", x)

    @jax.jit
    def update(params: Any, state: Any, event: Any, tables: Any, drawn: Any) -> Any:
        def loss(params: Any) -> Any:
            x = recommender.state_of(network, params, event.items, event.length)
            logits = recommender.apply(network, params, "logits", x)
            total = softmax.cross_entropy(logits, event.action)
            if name == "ce":
                return jnp.mean(total)
            q = recommender.apply(network, params, "q", x)

            def pick(table: Any, item: Any) -> Any:
                hot = jax.nn.one_hot(item, table.shape[-1])
                return jnp.sum(jnp.where(hot > 0, table, 0.0), axis=-1)

            best = pick(tables["target_next"], jnp.argmax(tables["main_next"], -1))
            y = event.reward + config.gamma * (1.0 - event.done) * best
            q_sa = pick(q, event.action)
            td = 0.5 * jnp.square(y - q_sa)
            if negatives:
                same = pick(tables["target"], jnp.argmax(tables["main"], -1))
                q_n = jnp.stack([pick(q, n) for n in drawn.T], axis=1)
                td += 0.5 * jnp.square(config.gamma * same[:, None] - q_n).sum(1)
            if name == "sa2c":
                mean = (q_sa + q_n.sum(1)) / (1 + negatives)
                weight = jnp.clip(jax.lax.stop_gradient(q_sa - mean), 0.0, 10.0)
                total = weight * total
            return jnp.mean(total + td)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def run() -> Any:
        value = None
        for _ in range(CALLS):
            rows = draw.integers(len(data.train["item"]), size=stage.config.batch_size)
            batch = loader.gather(data.train, rows, data.window, np)
            event = jax.jit(recommender.transition)(batch)
            main = int(draw.integers(2))
            tables = {}
            if name != "ce":
                passes = dict(
                    main_next=(main, event.next_items, event.next_length),
                    target_next=(1 - main, event.next_items, event.next_length),
                )
                if negatives:
                    passes["main"] = (main, event.items, event.length)
                    passes["target"] = (1 - main, event.items, event.length)
                for label, (copy, items, length) in passes.items():
                    tables[label] = np.asarray(values(copies[copy], items, length))
            drawn = np.zeros((stage.config.batch_size, negatives), np.int32)
            for i, action in enumerate(np.asarray(event.action)):
                for j in range(negatives):
                    other = draw.integers(1, data.info["num_items"] + 1)
                    while other == action:
                        other = draw.integers(1, data.info["num_items"] + 1)
                    drawn[i, j] = other
            copies[main], states[main], value = update(
                copies[main], states[main], event, tables, drawn
            )
        return value

    return run


def softmax_memory(
    vocab: int, width: int, batch_size: int, size: int
) -> dict[str, Any]:
    """Temporary bytes of cross entropy with gradients, plain and in chunks."""
    shapes = [(batch_size, width), (vocab, width), (vocab,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    target = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    size = softmax.chunk_size(vocab, size)

    def temporary(loss: Callable[..., Any]) -> int:
        both = jax.jit(
            lambda x, t, b, a: jax.value_and_grad(
                lambda *p: loss(*p, a).sum(), argnums=(0, 1, 2)
            )(x, t, b)
        )
        return timing.memory(both.lower(*args, target).compile())["temporary_bytes"]

    return dict(
        table_bytes=4 * vocab * batch_size,
        plain=temporary(lambda x, t, b, a: softmax.cross_entropy(x @ t.T + b[None], a)),
        chunked=temporary(
            lambda x, t, b, a: softmax.chunked_cross_entropy(x, t, b, a, size, vocab)
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="ce,sqn,snqn,sa2c")
    parser.add_argument("--encoder", default="gru")
    parser.add_argument("--num_items", type=int, default=36_968)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seq_len", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = dataset(args.num_items, 100_000, args.seq_len)
    found: dict[str, Any] = dict(machine=timing.machine(), num_items=args.num_items)
    for name in args.methods.split(","):
        stage, config = build(name, data, args.encoder, args.batch_size)
        run, facts = fused(stage)
        rivals = {"ours": (run, CALLS), "naive": (naive(name, stage, config), CALLS)}
        times = timing.in_turn(rivals, args.rounds)
        found[name] = facts | dict(
            ours_ms=round(times["ours"].ms(), 1),
            naive_ms=round(times["naive"].ms(), 1),
            ratio=round(times["naive"].ms() / times["ours"].ms(), 2),
            events_per_second=round(1e3 * args.batch_size / times["ours"].ms()),
        )
    found["softmax_at_1M_items"] = softmax_memory(1_000_064, 64, 256, 8_192)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{found['machine']}, {args.num_items:,} items, batch {args.batch_size}")
    print("method  ours ms  naive ms  ratio  events/s  temporary MB  compile s")
    for name in args.methods.split(","):
        row = found[name]
        print(
            f"{name:6} {row['ours_ms']:8} {row['naive_ms']:9} {row['ratio']:6} "
            f"{row['events_per_second']:9} {row['temporary_bytes'] / 1e6:13.0f} "
            f"{row['compile_seconds']:10}"
        )
    print("cross entropy at 1M items, batch 256:", found["softmax_at_1M_items"])


if __name__ == "__main__":
    main()
