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
from jaxrec.methods import session_events, world_model, world_sources
from jaxrec.methods.recommender import only_items
from jaxrec.methods.session_events import auc, count_outcomes, sessions
from jaxrec.models.session_world import KINDS, OUTCOMES, SessionWorld
from jaxrec.types import Array, Batch, Dataset, Method, TrainState, UserError

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
    source="random",  # top_n, softmax, softmax_top_n: by the reward of a session
    top_fraction=0.1,  # of top_n
    temperature=0.3,  # of softmax, in std of rewards
    rule="log",  # proposals as the log's, or "policy": by an earlier recommender
    rule_temperature=1.0,
    policy_stage="",  # rule=policy: the stage that proposes
    candidates=50,  # proposals of which the world takes the best; 1 = the proposal
    follow=0.0,  # share of the source session's own items that are kept
    future=1.0,  # what it is worth, in reward, that a user stays
    pessimism=1.0,  # std of the members that an item's worth is lowered by
    horizon=20,  # items shown in a simulation, at most
    generated=0.5,  # events, as a share of the recommender's own
    quantile=0.99,  # theta: of the uncertainty on held-out sessions
    correction="truncate",  # of steps above theta: relabel, none
)
RULES = ("log", "policy")
CORRECTIONS = ("truncate", "relabel", "none")


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
    check(config, info)
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
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, metrics

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
        """Continue sessions by `horizon` items.

        begun: items, kinds int32[B, window] from the left, length int32[B].
        planned: int32[B, horizon], the source's own items, 0 after its end. Returns
        items, kinds and length of the whole, left bool[B], and for each step [B, H]
        happens bool, reward (expected), uncertainty.
        """
        rows = jnp.arange(len(planned))

        def step(carry: Any, inputs: Any) -> Any:
            items, kinds, length, alive, left = carry
            planned, key = inputs
            key_item, key_follow, key_outcome = jax.random.split(key, 3)
            x = jax.vmap(lambda p: apply(p, "states", items, kinds)[rows, length])(
                state.params
            )
            every = says(jnp.moveaxis(jax.vmap(ask)(state.params, x), 2, 3))
            worth = every.reward + config.future * (every.outcome @ stays)
            worth = jnp.mean(worth, 0) - config.pessimism * jnp.std(worth, axis=0)
            proposals = propose(state, x, items, kinds, length)
            proposals = proposals / config.rule_temperature
            proposals += jax.random.gumbel(key_item, proposals.shape)
            count = min(config.candidates, info["num_items"])
            among = jax.lax.top_k(proposals, count)[1]  # draws without replacement
            best = jnp.argmax(jnp.take_along_axis(worth, among, axis=1), axis=1)
            item = among[rows, best].astype(jnp.int32)
            own = jax.random.uniform(key_follow, item.shape) < config.follow
            item = jnp.where(own & (planned > 0), planned, item)
            found = Says(every.outcome[:, rows, item], every.reward[:, rows, item])
            low = found.uncertainty > theta
            happens = alive & (length < window)
            if config.correction == "truncate":
                happens = happens & ~low
            p = jnp.mean(found.outcome, axis=0)
            if config.correction == "relabel":
                worst = jnp.argmin(found.reward, axis=0)
                p = jnp.where(low[:, None], found.outcome[worst, rows], p)
            outcome = jax.random.categorical(key_outcome, jnp.log(p), axis=1)
            row = dict(
                happens=happens, reward=p @ reward_of, uncertainty=found.uncertainty
            )
            place = jnp.where(happens, length, window)  # out of bounds: not written
            items = items.at[rows, place].set(item, mode="drop")
            kinds = kinds.at[rows, place].set(outcome % KINDS, mode="drop")
            left = left | (happens & (outcome >= KINDS))
            return (items, kinds, length + happens, happens & ~left, left), row

        def ask(params: Any, x: Array) -> Array:
            return apply(params, "outcomes", x)

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
            seen, count, total = session_events.history(
                items, kinds, length, info["seq_len"]
            )
            y = proposer.scores(state.extra, seen, count, total)
        return only_items(y, info)

    compiled = jax.jit(simulate)

    @jax.jit
    def uncertainty(state: TrainState, items: Array, kinds: Array) -> Array:
        return logged(state, items, kinds).uncertainty.reshape(items.shape)

    def produce(state: TrainState, dataset: Dataset, key: Array) -> dict[str, Any]:
        theta = math.inf
        if config.correction != "none":
            theta = session_events.threshold(
                lambda *args: uncertainty(state, *args), dataset, config.quantile
            )
        return session_events.imagine(
            lambda *args: compiled(state, *args), config, dataset, theta, key
        )

    return Method(init, train_step, eval_step, produce=produce)


def check(config: Any, info: dict[str, Any]) -> None:
    """Raises UserError for settings that cannot work, before any training."""
    if "impressions" not in info:
        raise UserError(
            f"the data {info.get('name', '')!r} do not say what users passed over: "
            "session_world needs data.source=simulated and impressions=True"
        )
    for field, allowed in (
        ("source", world_sources.SOURCES),
        ("rule", RULES),
        ("correction", CORRECTIONS),
    ):
        if config[field] not in allowed:
            raise UserError(
                f"{field} {config[field]!r} is unknown: use {', '.join(allowed)}"
            )
    positive = ("temperature", "rule_temperature", "generated", "horizon", "candidates")
    for field in (*positive, "members"):
        if config[field] <= 0:
            raise UserError(f"{field}={config[field]}: it must be positive")
    for field in ("quantile", "top_fraction"):
        if not 0 < config[field] <= 1:
            raise UserError(f"{field}={config[field]}: it must be in (0, 1]")
    stage, stages = config.policy_stage, info.get("stages", {})
    if (config.rule == "policy") != bool(stage):
        raise UserError(
            f"rule={config.rule!r} and policy_stage={stage!r}: rule=policy needs an "
            "earlier stage that proposes, and no other rule takes one"
        )
    if stage and (stage not in stages or stages[stage][1].scores is None):
        raise UserError(
            f"policy_stage={stage!r} is no earlier recommender: use one of "
            f"{', '.join(stages) or 'none here'}, and put it in `uses`"
        )
