"""Simulated users in pure JAX: sessions with hidden interests, boredom and leaving.

A user looks at one recommended item a step and ignores, clicks or buys it; a click or a
purchase is an event, an ignored item leaves no trace in a log. The idea follows the
session simulators of the field; the model and every number in it are ours.

- Interest z (unit vector, hidden): drifts towards what was clicked, and by chance.
- P(event) = sigmoid(bias + affinity z.e_j + appeal_j - boredom with j and its
  category).
- P(purchase | event) grows with the intent that earlier clicks in the category built
  up; a purchase satisfies it.
- Boredom with an item and with its category grows whenever it is shown, and fades.
- Frustration grows after an ignored item and with a boring category, falls after a
  satisfying event; the probability of leaving grows with it. The appealing items are
  the less satisfying ones: clickbait. So the best next item is not the best policy.

The logging policy (`platform`) knows no interest, only what a platform sees. It has
full support, and its propensities are exact.

Everything is [B] arrays of fixed shape and pure functions of a key, so it can be
jitted, scanned and vmapped. `jaxrec.envs.online` evaluates policies, and says what the
random, the logging and the all-knowing ones earn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.envs import platform
from jaxrec.types import Array, UserError

HPARAMS = dict(  # all ours
    num_items=500,
    num_categories=20,
    width=8,  # of interests and of items
    world=0,  # seed of the catalogue; users have seeds of their own
    r_click=0.2,
    r_buy=1.0,
    bias=-2.5,  # of the click logit
    affinity=6.0,
    drift=0.1,  # of the interest towards a clicked item
    wander=0.05,  # std of its own movement
    boredom=0.6,  # of a category that was just shown, in logits
    item_boredom=2.0,
    boredom_kept=0.9,  # a step
    buy_bias=-3.0,
    buy_intent=1.2,  # logits for each recent click in the category
    intent_kept=0.95,
    leave_bias=-4.5,
    ignored=0.2,  # frustration by an ignored item
    satisfied=0.6,  # relief by an event on a satisfying item
    bored=0.08,  # frustration by a category as boring as one shown once
    frustration_kept=0.95,
    log_popular=0.15,  # the logging policy's shares; the rest explores uniformly
    log_neighbours=0.8,
)
MEMORY = 8  # shown and clicked items that a user and the platform remember


class Users(NamedTuple):
    """A population as pure functions; items are 1 .. num_items, 0 is none.

    `reset(key, num)` -> state of `num` new users, with `state.alive: bool[B]`.
    `step(key, state, item int32[B])` -> (state, Feedback). Users who left stay as they
        are and give no feedback. Item 0 is ignored by everybody.
    `behave(key, state)` -> (item int32[B], propensity float32[B]), the logging policy.
    `propensities(state)` -> float32[B, num_items + 1], of every item; column 0 is 0.
    `preview(state)` -> Preview, what each item would do; for oracles and tests only.
    `rewards`: (click, purchase). `facts`: what a data set may know of the catalogue.
    """

    reset: Callable[..., Any]
    step: Callable[..., Any]
    behave: Callable[..., Any]
    propensities: Callable[..., Array]
    preview: Callable[..., Any]
    num_items: int
    rewards: tuple[float, float]
    facts: dict[str, Any]


class Feedback(NamedTuple):
    """bool[B] each but the reward, float32[B]; a purchase is not also a click."""

    click: Array
    purchase: Array
    reward: Array
    left: Array  # this was the last item the user looked at


class Preview(NamedTuple):
    """Probabilities float32[B, num_items + 1] if the item were shown; column 0 is 0."""

    click: Array
    purchase: Array
    leave: Array


class State(NamedTuple):
    """B users."""

    interest: Array  # float32[B, D], unit length
    boredom: Array  # float32[B, C], by category
    intent: Array  # float32[B, C]
    frustration: Array  # float32[B]
    shown: Array  # int32[B, MEMORY], the newest first, 0 before the start
    clicked: Array  # int32[B, MEMORY]
    alive: Array  # bool[B]


def catalogue(hparams: dict[str, Any]) -> dict[str, np.ndarray]:
    """Hidden facts of the items: arrays of num_items + 1 rows, row 0 unused."""
    num, width = hparams["num_items"], hparams["width"]
    generator = np.random.default_rng([hparams["world"], 0])
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    centre = unit(generator.normal(size=(hparams["num_categories"], width)))
    # Every category has items, whatever the sizes.
    category = generator.permutation(np.arange(num + 1) % len(centre))
    noise = generator.normal(size=(num + 1, width)) / np.sqrt(width)
    embedding = unit(centre[category] + 0.7 * noise)
    appeal = generator.normal(0, 0.8, num + 1)
    satisfaction = 0.5 - 0.4 * appeal + generator.normal(0, 0.3, num + 1)
    popularity = np.exp(appeal)
    popularity[0] = 0
    kernel = np.exp(8 * embedding @ embedding.T)
    kernel[:, 0] = 0
    kernel[0] = popularity  # no click yet
    return dict(
        centre=centre.astype(np.float32),
        category=category.astype(np.int32),
        embedding=embedding.astype(np.float32),
        appeal=appeal.astype(np.float32),
        satisfaction=satisfaction.astype(np.float32),
        popularity=(popularity / popularity.sum()).astype(np.float32),
        kernel=(kernel / kernel.sum(1, keepdims=True)).astype(np.float32),
    )


def push(memory: Array, item: Array, where: Array) -> Array:
    """int32[B, M] with the items put first where bool[B] says so."""
    moved = jnp.concatenate([item[:, None], memory[:, :-1]], axis=1)
    return jnp.where(where[:, None], moved, memory)


def make(config: Any = None) -> Users:
    """A population of session users; `config` overrides HPARAMS.

    Raises UserError for unknown names and impossible sizes.
    """
    given = dict(config or {})
    if unknown := sorted(set(given) - set(HPARAMS)):
        raise UserError(f"users have no {unknown[0]!r}: use {', '.join(HPARAMS)}")
    p = HPARAMS | given
    for name in ("num_items", "num_categories", "width"):
        if p[name] < 1:
            raise UserError(f"users.{name}={p[name]}: it must be 1 or more")
    num_items, num_categories = p["num_items"], p["num_categories"]
    hidden = catalogue(p)
    item = {name: jnp.asarray(array) for name, array in hidden.items()}
    behave, propensities = platform.make(p, item)
    rewards = (float(p["r_click"]), float(p["r_buy"]))
    # A clickbait item has a negative satisfaction: its click frustrates.
    relief = p["satisfied"] * item["satisfaction"]

    def reset(key: Array, num: int) -> State:
        key_first, key_second, key_noise = jax.random.split(key, 3)
        first = jax.random.randint(key_first, (num,), 0, num_categories)
        second = jax.random.randint(key_second, (num,), 0, num_categories)
        noise = jax.random.normal(key_noise, (num, p["width"]))
        interest = item["centre"][first] + 0.6 * item["centre"][second] + 0.1 * noise
        return State(
            interest=_unit(interest),
            boredom=jnp.zeros((num, num_categories)),
            intent=jnp.zeros((num, num_categories)),
            frustration=jnp.zeros(num),
            shown=jnp.zeros((num, MEMORY), jnp.int32),
            clicked=jnp.zeros((num, MEMORY), jnp.int32),
            alive=jnp.ones(num, bool),
        )

    def outcomes(score, seen, boredom, intent, frustration, j):
        """P(event), P(purchase | event), frustration if ignored and if not."""
        logit = p["bias"] + p["affinity"] * score + item["appeal"][j]
        logit = logit - p["boredom"] * boredom - p["item_boredom"] * seen
        event = jax.nn.sigmoid(logit) * (j > 0)
        buy = jax.nn.sigmoid(p["buy_bias"] + p["buy_intent"] * intent)
        kept = p["frustration_kept"] * frustration + p["bored"] * boredom
        ignored = jnp.minimum(kept + p["ignored"], 6.0)
        return event, buy, ignored, jnp.maximum(kept - relief[j], -3.0)

    def leave(frustration):
        return jax.nn.sigmoid(p["leave_bias"] + frustration)

    fading = p["boredom_kept"] ** jnp.arange(MEMORY)

    def step(key: Array, state: State, j: Array) -> tuple[State, Feedback]:
        key_event, key_buy, key_leave, key_wander = jax.random.split(key, 4)
        num = len(j)
        category = item["category"][j]
        at = jnp.arange(num), category
        embedding = item["embedding"][j]
        seen = (state.shown == j[:, None]) @ fading
        event, buy, ignored, relieved = outcomes(
            jnp.sum(state.interest * embedding, axis=1),
            seen,
            state.boredom[at],
            state.intent[at],
            state.frustration,
            j,
        )
        event = state.alive & (jax.random.uniform(key_event, (num,)) < event)
        purchase = event & (jax.random.uniform(key_buy, (num,)) < buy)
        click = event & ~purchase
        frustration = jnp.where(event, relieved, ignored)
        left = jax.random.uniform(key_leave, (num,)) < leave(frustration)
        left = left & state.alive
        wander = p["wander"] * jax.random.normal(key_wander, embedding.shape)
        pull = p["drift"] * event[:, None] * (embedding - state.interest)
        shown = (j > 0).astype(jnp.float32)
        boredom = (p["boredom_kept"] * state.boredom).at[at].add(shown)
        intent = p["intent_kept"] * state.intent
        intent = intent.at[at].add(click.astype(jnp.float32))
        intent = intent.at[at].multiply(1 - purchase.astype(jnp.float32))
        after = State(
            interest=_unit(state.interest + pull + wander),
            boredom=boredom,
            intent=intent,
            frustration=frustration,
            shown=push(state.shown, j, state.alive),
            clicked=push(state.clicked, j, event),
            alive=state.alive & ~left,
        )
        # Those who had left before stay as they were.
        state = jax.tree.map(
            lambda new, old: jnp.where(
                jnp.expand_dims(state.alive, tuple(range(1, new.ndim))), new, old
            ),
            after,
            state,
        )
        reward = rewards[0] * click + rewards[1] * purchase
        return state, Feedback(click, purchase, reward, left)

    def preview(state: State) -> Preview:
        num = len(state.alive)
        every = jnp.broadcast_to(jnp.arange(num_items + 1)[None], (num, num_items + 1))
        seen = jnp.zeros((num, num_items + 1))
        seen = seen.at[jnp.arange(num)[:, None], state.shown].add(
            jnp.broadcast_to(fading[None], state.shown.shape)
        )
        event, buy, ignored, relieved = outcomes(
            state.interest @ item["embedding"].T,
            seen,
            state.boredom[:, item["category"]],
            state.intent[:, item["category"]],
            state.frustration[:, None],
            every,
        )
        leaves = event * leave(relieved) + (1 - event) * leave(ignored)
        there = state.alive[:, None] & (every > 0)
        return Preview(there * event * (1 - buy), there * event * buy, there * leaves)

    attributes = hidden["category"][:, None] == np.arange(num_categories)
    attributes[0] = False
    facts = dict(name="users", attributes=attributes, hparams=p, hidden=hidden)
    return Users(
        reset,
        step,
        lambda key, state: behave(key, state.clicked),
        lambda state: propensities(state.clicked),
        preview,
        num_items,
        rewards,
        facts,
    )


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
