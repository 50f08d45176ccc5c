"""SNQN (Xin et al. 2022, arXiv 2111.03474).

    python -m jaxrec.main --config=configs/snqn.py
    python -m jaxrec.main --config=configs/snqn.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import snqn


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("snqn", snqn.HPARAMS, arg)
