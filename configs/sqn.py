"""SQN (Xin et al. 2020, arXiv 2006.05779).

    python -m jaxrec.main --config=configs/sqn.py
    python -m jaxrec.main --config=configs/sqn.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import sqn


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("sqn", sqn.HPARAMS, arg)
