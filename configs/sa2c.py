"""SA2C (Xin et al. 2022, arXiv 2111.03474).

    python -m jaxrec.main --config=configs/sa2c.py
    python -m jaxrec.main --config=configs/sa2c.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import sa2c


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    # A short run sees both phases.
    switch = dict(switch=12) if arg == "smoke" else {}
    return defaults.recommender("sa2c", sa2c.HPARAMS | switch, arg)
