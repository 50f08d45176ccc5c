"""Simulated trajectories: perturb the data's actions, ask a world model what follows.

OTTO (arXiv 2404.10393) states long simulations by a world model under perturbed
offline actions, a World Evaluator that corrects them, and training on original and
simulated data together. Its strategies, constants and formulas are not known to us: the
sources of trajectories, the action rules and every default here are our own choice.

One interface for transformers and MLP ensembles (`world_model.Prediction`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import logs
from jaxrec.methods import world_evaluator
from jaxrec.methods.world_model import Prediction
from jaxrec.methods.world_rollout import ACTION_RULES, FOLLOWS_SOURCE, Tools, rollout
from jaxrec.methods.world_rows import best, columns, finish, gain
from jaxrec.methods.world_sources import (
    SOURCES,
    draw,
    episodes,
    lookups,
    search,
    spaced,
    windows,
)
from jaxrec.types import Array, Batch, Dataset, UserError

# Source, action rule, horizon, keep: the best of a small search on two sets (README).
HPARAMS = dict(
    source="random",  # top_n, softmax, softmax_top_n; own choice, not from the paper
    top_fraction=0.1,  # rho: best episodes by return; own choice, not from the paper
    temperature=0.3,  # of softmax, in std of returns; own choice, not from the paper
    action_rule="retrieval",  # noise, uniform_scale, policy; own choice, as above
    sigma=0.1,  # std of the noise on actions; own choice, not from the paper
    delta=0.1,  # range of uniform_scale; own choice, not from the paper
    policy_stage="",  # action_rule=policy: the stage that acts; own choice, as above
    horizon=10,  # H, steps of a simulation; own choice, the paper says "long"
    generated=1.0,  # rows, as a share of the data; own choice, not from the paper
    keep=0.25,  # share of simulations kept, best gain first; own choice, as above
    rollout_member="mean",  # per_step, per_traj; own choice, not from the paper
    u_kind="pairwise-diff",  # ensemble_std, aleatoric; own choice, not from the paper
    quantile=0.95,  # theta on held-out windows; own choice, not from the paper
    kappa=0.0,  # bound on the sum of u, 0 = none; own choice, not from the paper
    penalty=1.0,  # lambda of penalise; own choice, not from the paper
    correction="truncate",  # see world_evaluator.judge; own choice, not from the paper
    termination="auto",  # analytic, learned, none; own choice, not from the paper
)

MEMBERS = ("mean", "per_step", "per_traj")
TERMINATIONS = ("auto", "analytic", "learned", "none")
CHUNK = 512  # rollouts of one compiled call, ours
HELD_OUT = 4_096  # windows that theta is taken from, at most, ours
NOTHING_HELD_OUT = (
    "the World Evaluator takes its threshold from held-out episodes: set the stage's "
    "data.valid_fraction (such as 0.1), or correction=none"
)
PATIENCE = 20  # chunks, as a multiple of those that full rollouts need, ours


def check(config: Any, info: dict[str, Any]) -> None:
    """Raises UserError for settings that cannot work, before any training."""
    for field, allowed in (
        ("source", SOURCES),
        ("action_rule", ACTION_RULES),
        ("rollout_member", MEMBERS),
    ):
        if config[field] not in allowed:
            raise UserError(
                f"{field} {config[field]!r} is unknown: use {', '.join(allowed)}"
            )
    for field in ("top_fraction", "keep"):
        if not 0 < config[field] <= 1:
            raise UserError(f"{field}={config[field]}: it must be in (0, 1]")
    for field in ("temperature", "generated", "horizon"):
        if config[field] <= 0:
            raise UserError(f"{field}={config[field]}: it must be positive")
    for field in ("sigma", "delta", "kappa", "penalty"):
        if config[field] < 0:
            raise UserError(f"{field}={config[field]}: it must not be negative")
    termination(config, info, config.predict_terminal)
    if config.correction != "none":
        if "valid_rows" in info and info["valid_rows"] is None:
            raise UserError(NOTHING_HELD_OUT)
        if config.members == 1 and config.u_kind != "aleatoric":
            raise UserError(
                f"members=1 never disagree, so u_kind={config.u_kind} corrects "
                "nothing: use more members, u_kind=aleatoric or correction=none"
            )
    if config.action_rule == "policy":
        stages = info.get("stages", {})
        if config.policy_stage not in stages:
            raise UserError(
                f"action_rule=policy needs an earlier stage as policy_stage, got "
                f"{config.policy_stage!r}: use one of {sorted(stages)}"
            )
        method = stages[config.policy_stage][1]
        if method.act is None or method.memory is not None:
            raise UserError(
                f"policy_stage={config.policy_stage!r}: its method cannot act on "
                "single observations; use one that can, such as td3bc"
            )


def termination(config: Any, info: dict[str, Any], has_head: bool):
    """(s' float[B, od], logit float[B] or None) -> bool[B]; None for never.

    `auto` is the analytic rule where the environment has one, else the learned head
    where the model has one. Rules see observations in the simulator's units. Raises
    UserError for an unknown kind, and for one that neither offers.
    """
    from jaxrec.envs import gym  # methods need no simulator, only its rule

    kind, env_id = config.termination, info.get("env_id", "")
    rule = gym.terminated(env_id)
    if kind not in TERMINATIONS:
        raise UserError(
            f"termination {kind!r} is unknown: use {', '.join(TERMINATIONS)}"
        )
    if kind == "auto":
        kind = "analytic" if rule else "learned" if has_head else "none"
    if kind == "analytic" and rule is None:
        raise UserError(
            f"termination=analytic: no rule for {env_id or 'unknown environments'!r}; "
            "use learned or none, or set data.env_id"
        )
    if kind == "learned" and not has_head:
        raise UserError("termination=learned: the world model has no termination head")
    if kind == "analytic":
        return lambda s, logit: rule(s)
    if kind == "learned":
        return lambda s, logit: logit > 0
    return None


def make_produce(
    config: Any,
    info: dict[str, Any],
    predict: Callable[[Any, Batch], Prediction],
    context: int,
) -> Callable[[Any, Dataset, Array], dict[str, np.ndarray]]:
    """produce(state, dataset, key) -> simulated transitions as numpy columns.

    Columns of a transition batch, and source int32 (episode of the training rows),
    start int32 (its step), uncertainty, corrected (1.0 = the evaluator changed the
    row) and cut (1.0 = the evaluator ended the simulation after the row). Rows of one
    simulation are contiguous; `timestep` counts from 0 and starts anew after a dropped
    row, so that windows are unbroken; `return_to_go` sums the simulated rewards.
    terminal is 1.0 only for an end of the environment: at a cut one may bootstrap.

    Raises UserError for settings that cannot work, without held-out rows where the
    evaluator needs a threshold, and where it truncates nearly everything.
    """
    check(config, info)
    evaluator = world_evaluator.make(config)
    rule = ACTION_RULES[config.action_rule]
    method = None
    if config.action_rule == "policy":
        method = info["stages"][config.policy_stage][1]

    @jax.jit
    def uncertainty(state, window):
        return evaluator.uncertainty(predict(state, window))

    @jax.jit
    def simulate(state, tables, theta, window, planned, available, source, key):
        scales = state.extra.scales
        shape = jax.eval_shape(predict, state, window)
        ends = termination(config, info, shape.terminal is not None)
        tools = Tools(
            act=method and (lambda s, key: method.act(state.extra.agent, s, key)),
            retrieve=search(scales, tables.get("best"), "action", source),
            nearest=search(scales, tables.get("any"), "observation"),
        )
        return rollout(
            predict,
            state,
            scales,
            window,
            planned,
            key,
            rule=rule,
            config=config,
            tools=tools,
            evaluator=evaluator._replace(theta=theta),
            ends=ends,
            member=config.rollout_member,
            available=available,
        )

    def produce(state: Any, dataset: Dataset, key: Array) -> dict[str, np.ndarray]:
        train = dataset.train
        table = episodes(train)
        theta = math.inf
        if evaluator.corrections:
            theta = threshold(uncertainty, state, dataset, context, config.quantile)
        tables = lookups(config, evaluator.corrections, train, table)
        wanted = max(1, math.ceil(config.generated * len(train["reward"]) - 1e-9))
        size = min(CHUNK, -(-wanted // config.horizon))
        limit = PATIENCE * -(-wanted // math.ceil(size * config.horizon * config.keep))
        parts, rows, chunk = [], 0, 0
        progress = logs.Progress("simulated rows", wanted)
        while rows < wanted:
            if chunk == limit:
                raise UserError(
                    f"the World Evaluator left {rows:,} of {wanted:,} rows after "
                    f"{chunk * size:,} simulations (u_kind={config.u_kind}, theta="
                    f"{theta:.4g}, correction={config.correction}): train the world "
                    "model longer, raise quantile, lower sigma or horizon, or use "
                    "correction=penalise"
                )
            key_draw, key_chunk = jax.random.split(jax.random.fold_in(key, chunk))
            source, start = draw(config, table, context, size, key_draw)
            row = table["first"][source] + start
            step = np.arange(config.horizon)[None, :]
            left = (table["length"][source] - start)[:, None]
            index = row[:, None] + np.minimum(step, left - 1)
            available = np.ones(index.shape, bool)
            if config.action_rule in FOLLOWS_SOURCE:
                available = step < left
            found = simulate(
                state,
                tables,
                jnp.float32(theta),
                windows(train, row, context),
                np.asarray(train["action"][index]),
                available,
                source.astype(np.int32),
                key_chunk,
            )
            found = jax.device_get(found)
            if config.keep < 1:
                own = np.where(available, train["reward"][index], 0.0)
                chosen = best(gain(found, own), config.keep)
                found = {name: array[chosen] for name, array in found.items()}
                source, start = source[chosen], start[chosen]
            parts.append(columns(found, source, start))
            rows, chunk = rows + len(parts[-1]["reward"]), chunk + 1
            progress.update(min(rows, wanted))
        joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return finish({k: array[:wanted] for k, array in joined.items()})

    return produce


def threshold(
    uncertainty: Callable[[Any, Batch], Array],
    state: Any,
    dataset: Dataset,
    context: int,
    quantile: float,
) -> float:
    """theta: the quantile of u on windows of held-out episodes.

    Training windows would not do: u is too small there. uncertainty: (state, window) ->
    float[B], jitted. Raises UserError where nothing is held out.
    """
    if "valid" not in dataset.evals:
        raise UserError(NOTHING_HELD_OUT)
    held_out = dataset.evals["valid"]
    rows = spaced(np.arange(len(held_out["reward"])), HELD_OUT)
    found = []
    for first in range(0, len(rows), CHUNK):
        # Every call has the same shape: the last one repeats its last row.
        index = rows[np.minimum(np.arange(first, first + CHUNK), len(rows) - 1)]
        found.append(np.asarray(uncertainty(state, windows(held_out, index, context))))
    u = np.concatenate(found)[: len(rows)]
    return world_evaluator.quantile(jnp.asarray(u), quantile)
