"""SAC, self-supervised actor-critic (Xin et al. 2020, arXiv 2006.05779).

    python -m jaxrec.main --config=configs/sac.py
    python -m jaxrec.main --config=configs/sac.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import sac


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    # A short run sees both phases.
    switch = dict(switch=12) if arg == "smoke" else {}
    return defaults.recommender("sac", sac.HPARAMS | switch, arg)
