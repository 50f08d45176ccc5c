"""Online TD3 that makes the behaviour policies of `gym/<Env>-v4/<level>`.

Fujimoto et al. 2018 (arXiv 1802.09477), with three differences of ours: LayerNorm
in the critics (fewer steps to a walking policy), a critic step size of 1e-3, and an
actor of 128x128 instead of 256x256: its float32 weights are under 80 kB, so they
ship unrounded, and both an update and a numpy roll-out are cheaper. A time limit is
not a terminal state.

Several simulators step together and are followed by as many updates as steps, in one
`lax.scan` over pairs of updates (the second of a pair also moves the actor). Every
checkpoint stays on disk; `--select` then writes the few that ship, and
`--list` prints what ships. The commands stand in configs/behaviour.py. A run that was
stopped starts afresh: the longest takes about half an hour on one core.
"""

import functools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.envs import gym
from jaxrec.envs.policies import act, select, table
from jaxrec.errors import UserError, fail


class Td3(NamedTuple):
    """The training state; `critic` is a tuple of two parameter dicts."""

    actor: dict
    critic: tuple
    target_actor: dict
    target_critic: tuple
    actor_opt: optax.OptState
    critic_opt: optax.OptState


def init_mlp(key, sizes, norm):
    """Weights uniform in +-1/sqrt(fan in), as PyTorch's linear layers start."""
    params = {}
    for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        key, key_w, key_b = jax.random.split(key, 3)
        bound = fan_in**-0.5
        params[f"w{i}"] = jax.random.uniform(
            key_w, (fan_in, fan_out), minval=-bound, maxval=bound
        )
        params[f"b{i}"] = jax.random.uniform(
            key_b, (fan_out,), minval=-bound, maxval=bound
        )
        if norm and i < len(sizes) - 2:
            params[f"scale{i}"] = jnp.ones(fan_out)
            params[f"shift{i}"] = jnp.zeros(fan_out)
    return params


def mlp(params, x):
    """Dense, (LayerNorm,) ReLU, twice, and a linear layer: float[B, in] -> [B, out]."""
    for i in range(2):
        x = x @ params[f"w{i}"] + params[f"b{i}"][None]
        if f"scale{i}" in params:
            x = x - x.mean(-1, keepdims=True)
            x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
            x = x * params[f"scale{i}"][None] + params[f"shift{i}"][None]
        x = jax.nn.relu(x)
    return x @ params["w2"] + params["b2"][None]


def make_td3(config, od, ad):
    """`init(key) -> Td3` and `block(state, buffer, rows, start, size, key)`.

    buffer: float32[capacity, 2 od + ad + 2], rows of observation, action, next
    observation, reward, 1 - terminal: one array, so a batch is one gather.
    """
    actor_tx, critic_tx = optax.adam(config.actor_lr), optax.adam(config.critic_lr)
    wide, narrow = config.critic_width, config.actor_width

    def init(key):
        key_actor, *key_critics = jax.random.split(key, 3)
        actor = init_mlp(key_actor, (od, narrow, narrow, ad), norm=False)
        critic = tuple(
            init_mlp(k, (od + ad, wide, wide, 1), norm=True) for k in key_critics
        )
        return Td3(
            actor,
            critic,
            jax.tree.map(jnp.copy, actor),
            jax.tree.map(jnp.copy, critic),
            actor_tx.init(actor),
            critic_tx.init(critic),
        )

    def value(params, s, a):
        return mlp(params, jnp.concatenate([s, a], -1))[:, 0]

    def update(state, batch, key, with_actor):
        s, a, next_s, r, mask = jnp.split(batch, np.cumsum([od, ad, od, 1]), axis=1)
        noise = config.target_noise * jax.random.normal(key, a.shape)
        noise = jnp.clip(noise, -config.noise_clip, config.noise_clip)
        next_a = jnp.tanh(mlp(state.target_actor, next_s)) + noise
        next_a = jnp.clip(next_a, -1, 1)
        next_q = jnp.minimum(*(value(c, next_s, next_a) for c in state.target_critic))
        target = r[:, 0] + config.discount * mask[:, 0] * next_q

        def critic_loss(critic):
            return sum(jnp.mean((value(c, s, a) - target) ** 2) for c in critic)

        grads = jax.grad(critic_loss)(state.critic)
        delta, critic_opt = critic_tx.update(grads, state.critic_opt)
        critic = optax.apply_updates(state.critic, delta)
        state = state._replace(critic=critic, critic_opt=critic_opt)
        if not with_actor:
            return state

        def actor_loss(actor):
            return -jnp.mean(value(critic[0], s, jnp.tanh(mlp(actor, s))))

        grads = jax.grad(actor_loss)(state.actor)
        delta, actor_opt = actor_tx.update(grads, state.actor_opt)
        actor = optax.apply_updates(state.actor, delta)
        return state._replace(
            actor=actor,
            actor_opt=actor_opt,
            target_actor=optax.incremental_update(
                actor, state.target_actor, config.tau
            ),
            target_critic=optax.incremental_update(
                critic, state.target_critic, config.tau
            ),
        )

    def block(state, buffer, rows, start, size, key):
        buffer = jax.lax.dynamic_update_slice(buffer, rows, (start, 0))
        key_rows, key_noise = jax.random.split(key)
        num = config.block // 2
        index = jax.random.randint(key_rows, (num, 2, config.batch_size), 0, size)

        def pair(state, inputs):
            index, key = inputs
            keys = jax.random.split(key)
            state = update(state, buffer[index[0]], keys[0], with_actor=False)
            return update(state, buffer[index[1]], keys[1], with_actor=True), None

        state, _ = jax.lax.scan(pair, state, (index, jax.random.split(key_noise, num)))
        return state, buffer

    return jax.jit(init), jax.jit(block, donate_argnums=(0, 1))


def train(config, workdir, say=print):
    """Trains and writes `WORKDIR/<step>.npz` every `eval_every` steps."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if config.block % (2 * config.num_envs):
        raise UserError(
            f"block {config.block} must be a multiple of 2 x num_envs "
            f"({2 * config.num_envs}): set config.block"
        )
    envs = [gym.make(config.env) for _ in range(config.num_envs)]
    od, ad = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]
    limit = gym.time_limit(config.env)
    key = jax.random.key(config.seed)
    noise = np.random.default_rng(config.seed)
    init, block = make_td3(config, od, ad)
    state = init(jax.random.fold_in(key, 0))
    buffer = jnp.zeros((config.num_steps + config.block, 2 * od + ad + 2))
    observations = np.stack(
        [e.reset(seed=config.seed * 1000 + i)[0] for i, e in enumerate(envs)]
    ).astype(np.float32)
    ages = np.zeros(config.num_envs, int)
    rows = np.zeros((config.block, 2 * od + ad + 2), np.float32)
    actor = jax.tree.map(np.asarray, state.actor)
    began, cpu_update, saved = time.time(), 0.0, 0
    flags = [flag for flag in sys.argv[1:] if not flag.startswith("--workdir")]
    command = " ".join(["python -m jaxrec.envs.behaviour", *flags])
    for step in range(0, config.num_steps, config.block):
        for row in range(0, config.block, config.num_envs):
            if step < config.start_steps:
                actions = noise.uniform(-1, 1, (config.num_envs, ad))
            else:
                actions = act(actor, observations)
                actions += config.explore_noise * noise.normal(size=actions.shape)
            actions = np.clip(actions, -1, 1).astype(np.float32)
            for i, env in enumerate(envs):
                following, reward, terminal, _, _ = env.step(actions[i])
                rows[row + i] = np.concatenate(
                    [observations[i], actions[i], following, [reward, 1 - terminal]]
                )
                ages[i] += 1
                if terminal or ages[i] == limit:
                    following, ages[i] = env.reset()[0], 0
                observations[i] = following
        size = step + config.block
        if size < config.start_steps:
            buffer = buffer.at[step:size].set(rows)
            continue
        clock = time.process_time()
        state, buffer = block(
            state, buffer, rows.copy(), step, size, jax.random.fold_in(key, step + 1)
        )
        actor = jax.tree.map(np.asarray, state.actor)
        cpu_update += time.process_time() - clock
        if size // config.eval_every > step // config.eval_every:
            policy = functools.partial(lambda p, s, _: act(p, s), actor)
            returns = gym.rollout(config.env, policy, config.eval_episodes, 100)
            returns = returns["returns"]
            saved = size // config.eval_every * config.eval_every
            temporary = workdir / f".{saved:07d}.npz"
            np.savez(
                temporary,
                **actor,
                env=config.env,
                step=saved,
                seed=config.seed,
                command=command,
                evaluation=returns,
            )
            temporary.replace(workdir / f"{saved:07d}.npz")
            wall = time.time() - began
            left = wall / size * (config.num_steps - size)
            updates = max(size - config.start_steps, 1)
            say(
                f"{config.env} step {saved} return {returns.mean():.0f}"
                f" +- {returns.std():.0f}  {size / wall:.0f} steps/s"
                f"  {1e3 * cpu_update / updates:.2f} CPU-ms an update"
                f"  ETA {left / 60:.1f} min",
                flush=True,
            )


def main():
    from absl import app, flags
    from ml_collections import config_flags

    config = config_flags.DEFINE_config_file("config", "configs/behaviour.py")
    workdir = flags.DEFINE_string("workdir", "runs/behaviour", "Of the checkpoints.")
    choose = flags.DEFINE_bool("select", False, "Write the policies that ship.")
    listing = flags.DEFINE_bool("list", False, "Print the policies that ship.")

    def run(_):
        try:
            if listing.value:
                print(table())
            elif choose.value:
                print(*select(workdir.value), sep="\n")
            else:
                train(config.value, workdir.value)
        except UserError as error:
            sys.exit(fail(error))

    app.run(run)


if __name__ == "__main__":
    main()
