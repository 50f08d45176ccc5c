"""OTTO for recommenders: a world of users that imagines longer and better sessions.

OTTO (Zhao et al., arXiv 2404.10393) has an ensemble of world transformers, simulates
long trajectories from perturbed actions, corrects those that the ensemble is unsure of
and trains on original and simulated data together. It is evaluated on control tasks;
this use of it, for items shown to users, and every default are our own. (The public
click log of the same name has nothing to do with it.)

A world transformer reads what a user was shown and did; it predicts the outcome of any
item shown next (ignored, clicked or bought; and whether the user then leaves) and the
item that the log shows next. Simulation continues the beginnings of logged sessions:
items are proposed, the best for the world is taken, its outcome drawn. `produce` gives
the events of these sessions to a recommender, whose loss stays as it is.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec.envs.online import pass_over
from jaxrec.methods import session_events, session_imagination, world_model
from jaxrec.methods.ranked import only_items
from jaxrec.methods.session_events import auc, count_outcomes, history, sessions
from jaxrec.models.session_world import KINDS, OUTCOMES, SessionWorld
from jaxrec.ops import catalogue
from jaxrec.types import Array, Batch, Dataset, Method, TrainState

HPARAMS = dict(  # all our own choices, none from the paper
    width=64,
    num_layers=2,
    num_heads=4,
    dropout=0.1,
    members=2,  # the paper says "ensemble"
    bootstrap=True,  # own sessions for each member
    shown_weight=0.2,  # of the loss of the item shown next
    optim=optim.spec(
        name="adamw",
        lr=2e-3,
        schedule="cosine",
        warmup=100,
        weight_decay=1e-4,
        clip=1.0,
    ),
    **session_imagination.HPARAMS,
)


class Says(NamedTuple):
    """What E members say of one item shown to each of B users."""

    outcome: Array  # float[E, B, OUTCOMES], probabilities
    reward: Array  # float[E, B], expected

    @property
    def uncertainty(self) -> Array:
        """std over the members of the expected reward: float[B]."""
        return jnp.std(self.reward, axis=0)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Ensemble of session worlds; needs impressions (data.impressions=True)."""
    session_imagination.check(config, info)
    window, members = info["window"], config.members
    network = SessionWorld(
        vocab=info["vocab"],
        num_items=info["num_items"],
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        length=window,
        dropout=config.dropout,
    )
    tx = optim.make(config.optim, config.steps)
    reward_of = jnp.asarray([*info["rewards"], 0.0] * 2, jnp.float32)  # of an outcome
    stays = jnp.asarray([1.0] * KINDS + [0.0] * KINDS)
    baseline = count_outcomes(info)
    proposer = info["stages"][config.policy_stage][1] if config.policy_stage else None

    def apply(params: Any, method: str, *args: Any, **kwargs: Any) -> Array:
        return network.apply(params, *args, method=method, **kwargs)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        items, kinds, _, _ = sessions(batch)
        keys = jax.random.split(key, members)
        params = jax.vmap(lambda key: network.init(key, items, kinds))(keys)
        agent = earlier[config.policy_stage] if config.policy_stage else None
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            extra=agent,
        )

    def outcome_logits(params: Any, items: Array, kinds: Array, **train: Any) -> Any:
        """States float[B, T, D] before each item, and float[B, T, OUTCOMES]."""
        x = apply(params, "states", items[:, :-1], kinds[:, :-1], **train)
        flat = x.reshape(-1, x.shape[-1])
        y = apply(params, "outcomes_at", flat, items.reshape(-1))
        return x, y.reshape(*items.shape, OUTCOMES)

    def member_loss(params: Any, batch: Batch, key: Array) -> tuple[Array, dict]:
        items, kinds, outcome, exists = sessions(batch)
        train = dict(train=True, rngs=dict(dropout=key))
        x, logits = outcome_logits(params, items, kinds, **train)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        nll = jnp.sum(jnp.where(exists, entropy(logits, outcome), 0.0))
        logits = apply(params, "shown", x.reshape(-1, x.shape[-1]))
        shown = entropy(logits, items.reshape(-1)).reshape(items.shape)
        count = jnp.maximum(jnp.sum(exists), 1)
        nll, shown = nll / count, jnp.sum(jnp.where(exists, shown, 0.0)) / count
        loss = nll + config.shown_weight * shown
        return loss, dict(loss=loss, outcome_nll=nll, shown_nll=shown)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key_rows, key_dropout = jax.random.split(key)
        rows = world_model.resample(batch, key_rows, members, config.bootstrap)
        keys = jax.random.split(key_dropout, members)

        def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
            loss, parts = jax.vmap(member_loss)(params, rows, keys)
            return jnp.sum(loss), jax.tree.map(jnp.mean, parts)

        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
        return optim.advance(tx, grads, state), metrics

    def says(logits: Array) -> Says:
        outcome = jax.nn.softmax(logits, axis=-1)
        return Says(outcome, outcome @ reward_of)

    def logged(state: TrainState, items: Array, kinds: Array) -> Says:
        """Of every item of sessions int32[B, T], flat."""
        ask = jax.vmap(lambda params: outcome_logits(params, items, kinds)[1])
        return says(ask(state.params).reshape(members, -1, OUTCOMES))

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        """Of the ensemble's mean, per item shown; `count_...`: shares of the item.

        `nll` of the outcome, `auc` of events among items shown by expected reward,
        pairs inside a batch.
        """
        items, kinds, outcome, exists = sessions(batch)
        found = logged(state, items, kinds)
        weight = (exists * batch["weight"][:, None]).reshape(-1)
        outcome, items = outcome.reshape(-1), items.reshape(-1)
        total = jnp.sum(weight)
        sums = dict(count=total)
        guesses = dict(world=jnp.mean(found.outcome, axis=0), count=baseline[items])
        for name, p in guesses.items():
            at = jnp.take_along_axis(p, outcome[:, None], axis=1)[:, 0]
            reward, event = p @ reward_of, reward_of[outcome] > 0
            prefix = "" if name == "world" else "count_"
            sums[prefix + "nll"] = -jnp.sum(weight * jnp.log(at))
            sums[prefix + "auc"] = total * auc(reward, event, weight)
        return sums

    def simulate(
        state: TrainState, begun: Batch, planned: Array, theta: Array, key: Array
    ) -> dict[str, Array]:
        """Continue sessions by `horizon` items that were not shown before.

        (A world misjudges repeats: in the simulator its best item earned 0.9 a user
        with them and 3.9 without.)

        begun: items, kinds int32[B, window], length int32[B]. planned: int32[B, H], the
        source's own items, 0 after its end. Returns items, kinds and length of the
        whole, left bool[B]; of each step [B, H] happens, low (confidence) and reward.
        """
        rows = jnp.arange(len(planned))

        def step(carry: Any, inputs: Any) -> Any:
            items, kinds, length, alive, left = carry
            planned, key = inputs
            key_item, key_follow, key_outcome = jax.random.split(key, 3)
            x = jax.vmap(lambda p: apply(p, "states", items, kinds)[rows, length])(
                state.params
            )
            ask = jax.vmap(lambda params, x: apply(params, "outcomes", x))
            every = says(jnp.moveaxis(ask(state.params, x), 2, 3))
            worth = every.reward + config.future * (every.outcome @ stays)
            worth = jnp.mean(worth, 0) - config.pessimism * jnp.std(worth, axis=0)
            proposals = propose(state, x, items, kinds, length)
            proposals = proposals / config.rule_temperature
            proposals = pass_over(proposals, items)
            proposals += jax.random.gumbel(key_item, proposals.shape)
            count = min(config.candidates, info["num_items"])
            # The best of perturbed logits are draws without replacement.
            logits, among = catalogue.top_k(proposals, count)
            worth = jnp.take_along_axis(worth, among, axis=1)
            best = jnp.argmax(jnp.where(jnp.isfinite(logits), worth, -jnp.inf), axis=1)
            item = among[rows, best].astype(jnp.int32)
            own = jax.random.uniform(key_follow, item.shape) < config.follow
            item = jnp.where(own & (planned > 0), planned, item)
            found = Says(every.outcome[:, rows, item], every.reward[:, rows, item])
            low = found.uncertainty > theta
            reached = alive & (length < window)
            happens = reached & ~low if config.correction == "truncate" else reached
            p = jnp.mean(found.outcome, axis=0)
            if config.correction == "relabel":
                worst = jnp.argmin(found.reward, axis=0)
                p = jnp.where(low[:, None], found.outcome[worst, rows], p)
            outcome = jax.random.categorical(key_outcome, jnp.log(p), axis=1)
            row = dict(happens=happens, low=reached & low, reward=p @ reward_of)
            place = jnp.where(happens, length, window)  # out of bounds: not written
            items = items.at[rows, place].set(item, mode="drop")
            kinds = kinds.at[rows, place].set(outcome % KINDS, mode="drop")
            left = left | (happens & (outcome >= KINDS))
            return (items, kinds, length + happens, happens & ~left, left), row

        inputs = planned.T, jax.random.split(key, config.horizon)
        start = jnp.ones(len(planned), bool)
        carry = (begun["items"], begun["kinds"], begun["length"], start, ~start)
        (items, kinds, length, _, left), found = jax.lax.scan(step, carry, inputs)
        found = {name: x.T for name, x in found.items()}
        return found | dict(items=items, kinds=kinds, length=length, left=left)

    def propose(
        state: TrainState, x: Array, items: Array, kinds: Array, length: Array
    ) -> Array:
        """Logits of the proposals: float[B, V]."""
        if proposer is None:
            shown = jax.vmap(lambda params, x: apply(params, "shown", x))
            y = jnp.mean(jax.nn.log_softmax(shown(state.params, x)), axis=0)
        else:
            seen, count, total = history(items, kinds, length, info["seq_len"])
            y = proposer.scores(state.extra, seen, count, total)
        return only_items(y, info)

    compiled = jax.jit(simulate)

    @jax.jit
    def uncertainty(state: TrainState, items: Array, kinds: Array) -> Array:
        return logged(state, items, kinds).uncertainty.reshape(items.shape)

    def produce(state: TrainState, dataset: Dataset, key: Array) -> dict[str, Any]:
        theta = math.inf
        if config.correction != "none":
            theta = session_imagination.threshold(
                lambda *args: uncertainty(state, *args), dataset, config.quantile
            )
        return session_imagination.imagine(
            lambda *args: compiled(state, *args), config, dataset, theta, key
        )

    return Method(
        init, train_step, eval_step, produce=produce, facts=session_events.facts
    )
