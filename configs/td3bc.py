"""TD3+BC (Fujimoto & Gu, 2021) on collected MuJoCo episodes.

    python -m jaxrec.main --config=configs/td3bc.py \
        --config.data.name=HalfCheetah-v4/medium

The official hyper-parameters; 50,000 updates (ours, for a CPU) instead of a million.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import td3bc


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.offline_rl("td3bc", td3bc.HPARAMS, arg)
