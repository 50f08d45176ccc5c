"""The naive loop that `recsys` measures against, as the published TF1 code does it.

One dispatch a pass, tables of the values of all items [B, V] brought to the host and
fed back, negatives drawn there in Python, values picked from whole tables. The same
objective as ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import program
from jaxrec.data import loader
from jaxrec.losses import softmax
from jaxrec.methods import recommender, windows
from jaxrec.models import recommender as networks


def loop(
    name: str, stage: program.Stage, config: Any, updates: int
) -> Callable[[], Any]:
    """`updates` updates of method `name` (ce, sqn, snqn, sa2c after its switch)."""
    data = stage.dataset
    network = networks.make(config, data.info, None if name == "ce" else 0)
    adam = optax.adam(config.optim.lr)
    batch = loader.host_batch(data, stage.config.batch_size, np.uint32(0), 0)
    event = jax.jit(windows.transition)(batch)
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
        for _ in range(updates):
            rows = draw.integers(len(data.train["item"]), size=stage.config.batch_size)
            batch = loader.gather(data.train, rows, data.window, np)
            event = jax.jit(windows.transition)(batch)
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
