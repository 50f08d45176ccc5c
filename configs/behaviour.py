"""Behaviour policies of the local ladder `gym/<Env>-v4/<level>`: online TD3."""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The settings of TD3; `arg` "smoke" runs everything in a few seconds."""
    config = ConfigDict()
    config.env = "Hopper-v4"
    config.seed = 0
    config.num_steps = 400_000  # simulator steps, and updates
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
