"""MCQ (Lyu et al., 2022) on collected MuJoCo episodes.

    python -m jaxrec.main --config=configs/mcq.py \
        --config.data.name=HalfCheetah-v4/medium

The official hyper-parameters; 50,000 updates (ours, for a CPU) instead of a million.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import mcq


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.offline_rl("mcq", mcq.HPARAMS, arg)
