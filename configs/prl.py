"""PRL: the return as a prompt (Xin et al. 2022, arXiv 2206.07353).

    python -m jaxrec.main --config=configs/prl.py
    python -m jaxrec.main --config=configs/prl.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import prl


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("prl", prl.HPARAMS, arg)
