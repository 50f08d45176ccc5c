"""On-line evaluation of recommenders by simulated users.

The judge is the true simulator with users that no log contains: every evaluation folds
its key with EVALUATION, logs are written with LOGGING, so a policy never meets a user,
or a model of a user, that it was trained on.

A policy is `policy(items, length, timestep, key, shown)` -> item int32[B]: the last L
events int32[B, L] from the left with zeros behind their int32[B] `length`, the number
of events so far int32[B], a key, and the items last shown int32[B, M], the newest
first, 0 before the start, whether clicked or not.

Measured on the default users, means of 10,000 (`python -m jaxrec.envs.online`, key 1,
at most 50 items; standard errors of the rewards: 0.01 to 0.05):

                          reward  length  clicks  purchases  coverage  gini
    random                  1.37    23.0     5.1       0.36      1.00  0.03
    nearest to last event   1.50    13.5     3.9       0.72      0.95  0.83
    logging                 2.34    21.7     7.0       0.94      1.00  0.21
    oracle, greedy          7.03    22.5    13.6       4.31      0.91  0.71
    oracle, future=1        8.37    26.8    16.2       5.13      0.92  0.68
    oracle, future=8       11.63    37.1    22.6       7.11      0.94  0.64

The oracles know the hidden state; `future` is the worth of a user who stays.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.envs import users as session_users
from jaxrec.envs.users import Users, push
from jaxrec.ops import history
from jaxrec.types import Array, UserError

LOGGING, EVALUATION = 1, 2  # streams of users
SHOWN = 10  # shown items that a policy is told of; ours


def from_scores(
    scores: Callable[..., Array],
    temperature: float = 0.0,
    avoid_shown: bool = True,
    popularity: Array | None = None,
    mask_seen: bool = False,
    best: Callable[[Array], Array] | None = None,
) -> Callable[..., Array]:
    """A policy from `scores(items, length, timestep)` -> float[B, V].

    The best item, or with a temperature a draw from softmax(scores / temperature).
    `avoid_shown` passes over the last SHOWN items: a deterministic policy would repeat
    an ignored item for ever, since it leaves no event (impression discounting; ours);
    `mask_seen` over those of the history. Items are passed over only as long as others
    are left.

    `popularity`: float[V], the scores of users without an event. Where the first event
    of a session is not predicted, methods that learn have an untrained state for them
    and methods that count fall back on popularity: with one cold start for all, rewards
    compare what methods make of a history (ours). `best`: float[B, V] -> int[B],
    None = `jnp.argmax`.
    """

    def policy(items, length, timestep, key, shown):
        score = scores(items, length, timestep)
        if popularity is not None:
            score = jnp.where((length == 0)[:, None], popularity[None], score)
        if temperature > 0:
            score = score / temperature + jax.random.gumbel(key, score.shape)
        if mask_seen:
            score = pass_over(score, items)
        if avoid_shown:
            score = pass_over(score, shown)
        found = jnp.argmax(score, axis=1) if best is None else best(score)
        return found.astype(jnp.int32)

    return policy


def pass_over(score: Array, items: Array) -> Array:
    """-inf at int32[B, M] items of float[B, V] unless that leaves a row nothing."""
    rows = jnp.arange(len(items))[:, None]
    fresh = score.at[rows, items].set(-jnp.inf)
    left = jnp.any(jnp.isfinite(fresh), axis=1, keepdims=True)
    return jnp.where(left, fresh, score)


def evaluate(
    policy: Callable[..., Array],
    users: Users,
    key: Array,
    num_users: int = 2000,
    horizon: int = 50,
    seq_len: int = 10,
) -> dict[str, Array]:
    """What `num_users` new users give, each until leaving or `horizon` items: scalars.

    `reward` (mean cumulative reward of a user) with its `reward_std` over users,
    `length` (items looked at), `clicks`, `purchases` (means), `coverage` (share of the
    catalogue shown at least once), `gini` (of how often items were shown). Pure: jit it
    with a train state as argument to compile once for all evaluations.
    """

    def act(key, state, items, length, timestep, shown):
        del state  # hidden from policies
        return policy(items, length, timestep, key, shown)

    return evaluate_hidden(act, users, key, num_users, horizon, seq_len)


def evaluate_hidden(
    act: Callable[..., Array],
    users: Users,
    key: Array,
    num_users: int = 2000,
    horizon: int = 50,
    seq_len: int = 10,
) -> dict[str, Array]:
    """`evaluate` for oracles: act(key, state, items, length, timestep, shown)."""
    sizes = dict(num_users=num_users, horizon=horizon, seq_len=seq_len)
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size}: on-line evaluation needs 1 or more")

    def one(key, carry, number):
        state, items, length, timestep, shown, total, counts = carry
        key_act, key_step = jax.random.split(jax.random.fold_in(key, number))
        looks = state.alive
        item = act(key_act, state, items, length, timestep, shown)
        state, feedback = users.step(key_step, state, item)
        event = feedback.click | feedback.purchase
        items, length = history.append(items, length, item, event)
        shown = push(shown, item, looks)
        values = (feedback.reward, looks, feedback.click, feedback.purchase)
        total = total + jnp.stack([jnp.float32(1) * value for value in values])
        counts = counts.at[item].add(looks.astype(jnp.float32))
        timestep = timestep + event
        return (state, items, length, timestep, shown, total, counts), None

    def episode(key):
        key = jax.random.fold_in(key, EVALUATION)
        key_reset, key_steps = (jax.random.fold_in(key, part) for part in range(2))
        start = (
            users.reset(key_reset, num_users),
            jnp.zeros((num_users, seq_len), jnp.int32),
            jnp.zeros(num_users, jnp.int32),
            jnp.zeros(num_users, jnp.int32),
            jnp.zeros((num_users, SHOWN), jnp.int32),
            jnp.zeros((4, num_users), jnp.float32),
            jnp.zeros(users.num_items + 1, jnp.float32),
        )
        each = functools.partial(one, key_steps)
        return jax.lax.scan(each, start, jnp.arange(horizon))[0][-2:]

    total, counts = jax.jit(episode)(key)
    means = jnp.mean(total, axis=1)
    names = ("reward", "length", "clicks", "purchases")
    found = dict(zip(names, means))
    return found | dict(
        reward_std=jnp.std(total[0]),
        coverage=jnp.mean(counts[1:] > 0),
        gini=gini(counts[1:]),
    )


def gini(counts: Array) -> Array:
    """Gini coefficient of float32[V] counts: 0 all alike, near 1 one takes all."""
    ordered = jnp.sort(counts)
    rank = jnp.arange(1, len(ordered) + 1)
    weight = 2 * rank - len(ordered) - 1
    total = jnp.maximum(jnp.sum(ordered), 1e-9)
    return jnp.sum(weight * ordered) / (len(ordered) * total)


def random_policy(num_items: int) -> Callable[..., Array]:
    """Every item alike."""

    def policy(items, length, timestep, key, shown):
        return jax.random.randint(key, length.shape, 1, num_items + 1, jnp.int32)

    return policy


def logging_policy(users: Users) -> Callable[..., Array]:
    """The logging policy, for `evaluate_hidden`."""

    def act(key, state, *seen):
        return users.behave(key, state)[0]

    return act


def oracle(users: Users, future: float = 0.0) -> Callable[..., Array]:
    """Knows the users: the item of the highest expected reward, for `evaluate_hidden`.

    `future`: what it takes a user who stays to be worth, in reward; 0 is greedy.
    """

    def act(key, state, *seen):
        click, purchase, leave = users.preview(state)
        score = users.rewards[0] * click + users.rewards[1] * purchase
        score = score - future * leave
        return 1 + jnp.argmax(score[:, 1:], axis=1).astype(jnp.int32)

    return act


def rollout(users: Users, key: Array, num_users: int, horizon: int) -> dict[str, Any]:
    """The logging policy with users of the LOGGING stream: arrays [horizon, num_users].

    item int32, propensity float32, click, purchase, left, alive (before the step) bool.
    """

    def one(key, state, number):
        key_act, key_step = jax.random.split(jax.random.fold_in(key, number))
        item, propensity = users.behave(key_act, state)
        after, feedback = users.step(key_step, state, item)
        row = dict(item=item, propensity=propensity, alive=state.alive)
        row |= feedback._asdict()
        return after, row

    def episode(key):
        key = jax.random.fold_in(key, LOGGING)
        key_reset, key_steps = (jax.random.fold_in(key, part) for part in range(2))
        start = users.reset(key_reset, num_users)
        each = functools.partial(one, key_steps)
        return jax.lax.scan(each, start, jnp.arange(horizon))[1]

    return jax.jit(episode)(key)


def main() -> None:
    """Print what the reference policies earn."""
    people = session_users.make()
    kernel = jnp.asarray(people.facts["hidden"]["kernel"])

    def last(items, length, timestep):
        place = jnp.maximum(length - 1, 0)[:, None]
        row = jnp.take_along_axis(items, place, axis=1)[:, 0]
        return kernel[row].at[:, 0].set(-jnp.inf)

    key, size = jax.random.key(1), 10_000
    rows = {
        "random": evaluate(random_policy(people.num_items), people, key, size),
        "nearest to the last event": evaluate(from_scores(last), people, key, size),
        "logging": evaluate_hidden(logging_policy(people), people, key, size),
    }
    for future in (0.0, 1.0, 8.0):
        name = f"oracle, future={future:g}"
        rows[name] = evaluate_hidden(oracle(people, future), people, key, size)
    names = ("reward", "reward_std", "length", "clicks", "purchases", "coverage")
    names += ("gini",)
    print(" " * 26 + " ".join(name.rjust(10) for name in names))
    for name, found in rows.items():
        print(name.ljust(26) + " ".join(f"{float(found[n]):10.2f}" for n in names))


if __name__ == "__main__":
    main()
