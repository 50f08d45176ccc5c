"""EVAL: the value of the logged policy (Labarca Silva et al., ICML 2024).

    python -m jaxrec.main --config=configs/eval.py
    python -m jaxrec.main --config=configs/eval.py --config.train.encoder=sasrec

On the log of simulated users by default: no files, no network. `test/...` ranks
held-out events, `users/...` is what new simulated users give.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import sarsa


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    return defaults.recommender("eval", sarsa.HPARAMS, arg)
