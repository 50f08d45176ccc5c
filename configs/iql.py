"""IQL (Kostrikov et al., 2021) on collected MuJoCo episodes.

    python -m jaxrec.main --config=configs/iql.py \
        --config.data.name=HalfCheetah-v4/medium

The official hyper-parameters; 50,000 updates (ours, for a CPU) instead of a million.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import iql


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.offline_rl("iql", iql.HPARAMS, arg)
