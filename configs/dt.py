"""Decision Transformer (Chen et al., 2021) on collected MuJoCo episodes.

    python -m jaxrec.main --config=configs/dt.py \
        --config.data.name=Hopper-v4/medium-replay

The official network and optimiser; 10,000 updates and a warm-up of 1,000 (ours, for a
CPU) instead of 100,000 and 10,000, and 10 episodes an evaluation instead of 100. Asks
for the published return of the environment: --config.train.dt.target_return=... for
another, such as the best of the data.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import dt


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.offline_rl(
        "dt",
        dt.HPARAMS,
        arg,
        steps=10_000,
        batch_size=64,  # official
        log_every=100,
        eval_every=2_500,
        checkpoint_every=1_000,
        steps_per_call=25,
        data=dict(defaults.OFFLINE_RL_VIEW, window=20),  # official
    )
