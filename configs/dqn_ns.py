"""Double Q-learning with negatives alone (ablation in arXiv 2111.03474).

    python -m jaxrec.main --config=configs/dqn_ns.py
    python -m jaxrec.main --config=configs/dqn_ns.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import dqn_ns


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("dqn_ns", dqn_ns.HPARAMS, arg)
