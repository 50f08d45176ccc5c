"""Behaviour policies of the local ladder `gym/<Env>-v4/<level>`: online TD3.

What ships in jaxrec/envs/weights was made by

    python -m jaxrec.envs.behaviour --config=configs/behaviour.py \
        --config.env=Hopper-v4 --workdir=runs/behaviour/hopper
    python -m jaxrec.envs.behaviour --config=configs/behaviour.py \
        --config.env=HalfCheetah-v4 --workdir=runs/behaviour/halfcheetah
    python -m jaxrec.envs.behaviour --config=configs/behaviour.py \
        --config.env=Walker2d-v4 --config.critic_lr=3e-4 \
        --workdir=runs/behaviour/walker2d

(stopped by hand after 440,000, 420,000 and 540,000 steps, about half an hour each on
one core) and, for each of the three folders,

    python -m jaxrec.envs.behaviour --select --workdir=runs/behaviour/hopper

`--list` prints steps, returns and scores of the policies that ship.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The settings of TD3; `arg` "smoke" runs everything in a few seconds."""
    config = ConfigDict()
    config.env = "Hopper-v4"
    config.seed = 0
    config.num_steps = 600_000  # simulator steps, and updates
    config.num_envs = 8
    config.block = 64  # simulator steps between two calls, and updates a call
    config.start_steps = 10_000  # uniform actions, no updates
    config.eval_every = 10_000
    config.eval_episodes = 10
    config.batch_size = 256
    config.actor_width = 128
    config.critic_width = 256
    config.actor_lr = 3e-4
    config.critic_lr = 1e-3
    config.discount = 0.99
    config.tau = 0.005
    config.explore_noise = 0.1
    config.target_noise = 0.2
    config.noise_clip = 0.5
    if arg == "smoke":
        config.num_steps = 2_000
        config.start_steps = 500
        config.eval_every = 1_000
        config.eval_episodes = 2
    return config
