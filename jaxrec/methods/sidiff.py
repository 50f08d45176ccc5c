"""SIDIFF: agents infer the state from what they see by diffusion, and act on both.

"Beyond Local Views: Global State Inference with Diffusion Models for Cooperative
Multi-Agent Reinforcement Learning" (2024, arXiv 2408.09501), of which only the abstract
and the opening were available to us: the idea (complete the state like an image beyond
its frame), the two parts (state generator and state extractor) and that an agent acts
on the inferred state and its own observation are the paper's; **everything else here is
ours**, and no number is claimed to be the paper's.

One train step:

    play     each agent: condition c from what it sees and remembers -> samples of the
             state (generator's average, K steps) -> extractor -> z -> values or logits
    infer    the generator learns p(s | c) on pairs of the replay: the true state is a
             target in training, nobody sees it when acting
    learn    the host (IQL, VDN, QMIX, QPLEX, MAPPO, IPPO) learns by its own loss,
             through z and the extractor, with what was imagined as a constant

No gradient passes between the two. `inference` also names the controls: "none" is the
host, "regressor" and "vae" infer by other means, "oracle" shows the agents the true
state, "placebo" that of another game.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.envs import teams as envs
from jaxrec.methods import generator as generators
from jaxrec.methods import inference as inference_lib
from jaxrec.methods import state_error, state_forms, team_hosts, teams
from jaxrec.methods.state_inference import (
    LEARNED,
    SHOWN,
    for_agents,
    learner,
    make_imagine,
)
from jaxrec.models.extractor import StateExtractor
from jaxrec.types import Array, Method, TrainState, UserError

HPARAMS = dict(
    host="qmix",  # see team_hosts.NAMES
    inference="diffusion",  # none, diffusion, regressor, vae, oracle, placebo
    form="auto",  # of the state: vector, entities, grid; see state_forms
    samples=1,  # M, of the state at a time
    measured=4,  # as many to measure how good they are
    resample=False,  # learn on states imagined anew, not on those acted on
    warmup=0.1,  # share of the training in which the gate stays shut
    generator=generators.HPARAMS,
    history=True,  # the condition holds the agent's memory
    width=64,  # of the denoiser
    num_layers=2,
    num_heads=4,
    widths=(16, 32, 64),  # of the U-Net, form grid
    generator_updates=1,  # a train step
    generator_chunks=8,  # chunks of one of them
    generator_optim=optim.spec(lr=3e-4, clip=1.0),
    extractor=dict(size=64, width=64, num_layers=1, num_heads=4, patch=4),
    **team_hosts.HPARAMS,
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Any host with any inference."""
    team = envs.of_info("sidiff", info)
    check(config)
    if config.inference == "none":
        return team_hosts.alone(config, team)
    form = state_forms.make(config, team)
    host = team_hosts.make(config, team, describe(config, team, form))
    imagine = make_imagine(config, form, config.samples)
    measure = make_imagine(config, form, config.measured)
    learns = config.inference in LEARNED
    model, optimiser = learner(config, form) if learns else (None, None)

    def init(key: Array, batch: Any, earlier: Any) -> TrainState:
        key_host, key_model = jax.random.split(key)
        state = host.init(key_host)
        target = state.target_params or {}
        if not learns:
            return state.replace(target_params=target)
        games = state.extra.games.state
        view = teams.views(team, games)
        hidden = jnp.zeros((*view.active.shape, host.network.width))
        condition = form.condition(view.observation, hidden)
        params = model.init(key_model, jax.tree.map(lambda x: x[0, 0], condition))
        return state.replace(
            params=state.params | dict(generator=params),
            opt_state=state.opt_state | dict(generator=optimiser.init(params)),
            target_params=target | dict(generator=jax.tree.map(jnp.copy, params)),
        )

    def imagine_by(state: TrainState) -> Any:
        average = state.target_params.get("generator")
        return partial(imagine, average)

    def infer(state: TrainState, key: Array, chunk: Any) -> Any:
        """Gradient steps of the generator on pairs of state and condition."""

        def update(carry: Any, number: Array) -> Any:
            params, average, opt_state = carry
            key_draw, key_loss = jax.random.split(jax.random.fold_in(key, number))
            rows = host.pairs(state, key_draw, chunk, config.generator_chunks)
            loss, grads = jax.value_and_grad(generator_loss)(
                params, average, key_loss, state, rows
            )
            params, opt_state = optim.descend(optimiser, grads, opt_state, params)
            average = generators.ema(config.generator.ema, average, params, number)
            return (params, average, opt_state), loss

        count = config.generator_updates
        carry = (
            state.params["generator"],
            state.target_params["generator"],
            state.opt_state["generator"],
        )
        numbers = state.step * count + jnp.arange(count)
        (params, average, opt_state), loss = jax.lax.scan(update, carry, numbers)
        state = state.replace(
            params=state.params | dict(generator=params),
            target_params=state.target_params | dict(generator=average),
            opt_state=state.opt_state | dict(generator=opt_state),
        )
        return state, dict(generator_loss=jnp.mean(loss))

    def generator_loss(
        params: Any, average: Any, key: Array, state: TrainState, chunk: Any
    ) -> Array:
        view = teams.views(team, chunk.state)
        before = host.memories(state.params, chunk, view)
        states, view, before = inference_lib.by_games((chunk.state, view, before))
        condition = form.condition(view.observation, before)
        truth = for_agents(form.encode(states), team.num_agents)
        pairs = inference_lib.flat((truth, condition))
        weight = jnp.asarray(form.weight)

        def one(key: Array, x: Array, seen: Any) -> Array:
            return model.loss(params, average, key, x, seen, weight)

        keys = jax.random.split(key, pairs[0].shape[0])
        alive = view.active.reshape(-1).astype(jnp.float32)
        each = jax.vmap(one)(keys, *pairs)
        return jnp.sum(alive * each) / jnp.maximum(jnp.sum(alive), 1.0)

    def error(state: TrainState, key: Array, chunk: Any) -> dict[str, Array]:
        """Of what living agents imagine at the chunk's end and do not see.

        Several samples each, however many the agents act on: see `state_error`. Where
        nothing is known for certain it is of the whole state, and named so.
        """
        view = teams.views(team, chunk.state)
        hidden = host.memories(state.params, chunk, view)
        last = (chunk.state, view, hidden)
        states, view, hidden = jax.tree.map(lambda x: x[-1], last)
        average = state.target_params.get("generator")
        samples = measure(average, key, states, view, hidden)
        truth = for_agents(form.encode(states), team.num_agents)
        known = form.known(view.observation)
        weight = jnp.ones(truth.shape) if known is None else 1.0 - known[1]
        weight = weight * jnp.asarray(form.weight)[None, None]
        alive = view.active.reshape(*view.active.shape, *(1,) * len(form.shape))
        rows = inference_lib.flat((truth, samples, weight * alive))
        found = state_error.summary(*rows, form.present, form.place)
        if known is not None:
            return found
        return {name.replace("unseen", "state"): x for name, x in found.items()}

    def train_step(state: TrainState, batch: Any, key: Array) -> Any:
        key_play, key_measure, key_infer, key_learn = jax.random.split(key, 4)
        state, chunk = host.collect(state, key_play, imagine_by(state))
        metrics = error(state, key_measure, chunk)
        if learns:
            state, found = infer(state, key_infer, chunk)
            metrics |= found
        state, found = host.learn(state, key_learn, imagine_by(state), chunk)
        metrics |= found | host.report(state)
        return state.replace(step=state.step + 1), metrics

    def act(state: TrainState, seen: Any, key: Array) -> Any:
        return host.act(state, seen, key, imagine_by(state))

    return Method(init, train_step, act=act, memory=host.memory, rules=("games",))


def check(config: Any) -> None:
    """Raises UserError for names that do not exist."""
    kinds = ("none", *LEARNED, *SHOWN)
    for field, names in (("host", team_hosts.NAMES), ("inference", kinds)):
        if config[field] not in names:
            raise UserError(
                f"{field} {config[field]!r} is unknown: use one of {', '.join(names)}"
            )
    if config.resample and config.host in team_hosts.POLICY:
        raise UserError(
            f"resample with host {config.host}: its ratio must compare policies on the "
            "same inputs, set resample=False"
        )
    if config.resample and config.inference not in LEARNED:
        raise UserError(
            f"resample with inference {config.inference}: nothing is imagined anew, "
            "set resample=False"
        )
    if not 0 <= config.warmup < 1:
        raise UserError(
            f"warmup={config.warmup}: the gate would never open, give a share of the "
            "training from 0 to below 1"
        )
    counts = ("samples", "measured", "generator_updates", "generator_chunks")
    teams.check(config, counts)
    check_heads("extractor.", config.extractor)


def check_heads(name: str, sizes: Any) -> None:
    """Raises UserError for sizes of the extractor that make no network."""
    if sizes.patch < 1:
        raise UserError(f"{name}patch={sizes.patch}: at least 1 cell a side")
    if sizes.num_heads < 1 or sizes.width % sizes.num_heads:
        raise UserError(
            f"{name}num_heads={sizes.num_heads} must divide {name}width={sizes.width}"
        )


def describe(
    config: Any, team: envs.Team, form: state_forms.Form
) -> inference_lib.Inference:
    """What the host must know: shape, extractor, gate."""
    lead = team.num_agents, config.samples
    return inference_lib.Inference(
        blank=lambda games: jnp.zeros((games, *lead, *form.shape), jnp.bfloat16),
        extractor=StateExtractor(**config.extractor),
        opened=lambda step: (step >= config.warmup * config.steps) * 1.0,
        resample=config.resample,
    )
