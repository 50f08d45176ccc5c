"""Behaviour cloning on collected MuJoCo episodes.

    python -m jaxrec.main --config=configs/bc.py
    python -m jaxrec.main --config=configs/bc.py --config.train.data.top=0.1

The second clones only the tenth of the episodes with the best returns (10%-BC), which
beats the Decision Transformer on several D4RL sets.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import bc


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.offline_rl("bc", bc.HPARAMS, arg)
