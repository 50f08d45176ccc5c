"""Next-item prediction by cross entropy: the base of the family.

    python -m jaxrec.main --config=configs/ce.py
    python -m jaxrec.main --config=configs/ce.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ce


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("ce", ce.HPARAMS, arg)
