"""FUT: a count of the future as auxiliary target (Labarca Silva et al. 2024).

    python -m jaxrec.main --config=configs/fut.py
    python -m jaxrec.main --config=configs/fut.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import proxy


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("fut", proxy.HPARAMS, arg)
