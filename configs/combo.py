"""COMBO (Yu et al., 2021): conservative Q-learning on data and on model rollouts.

    python -m jaxrec.main --config=configs/combo.py \
        --config.data.name=Hopper-v4/medium --config.policy.combo.weight=5.0

Stage `world` trains the ensemble of configs/mopo.py, stage `policy` the agent.
OfflineRL-Kit's hyper-parameters for hopper-medium-replay (those of other sets:
jaxrec/methods/combo.py); 20,000 updates (ours, for a CPU) instead of a million.
"""

from ml_collections import ConfigDict

from configs.mopo import policy, world
from jaxrec import defaults
from jaxrec.methods import combo


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    stages = dict(world=world(), policy=policy("combo", combo.HPARAMS, steps=20_000))
    config = defaults.run("combo", stages, defaults.OFFLINE_RL_DATA)
    return defaults.shortened(config, arg)
