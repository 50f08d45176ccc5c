"""QMIX (Rashid et al. 2018) in Battle City; also VDN, QPLEX, independent Q-learning.

    python -m jaxrec.main --config=configs/qmix.py
    python -m jaxrec.main --config=configs/qmix.py --config.train.method=vdn \
        --config.data.name=3t_vs_6e_bricks --config.data.settings=radius=2

One train step plays 32 games for 32 steps and takes two gradient steps on chunks of the
replay. Hyper-parameters of PyMARL2 but for what the methods mark as ours. The baselines
team_random and team_scripted are methods too: one step is enough for them.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import indep_q, qmix, qplex, team_baselines, vdn

HPARAMS = dict(
    qmix=qmix.HPARAMS,
    vdn=vdn.HPARAMS,
    qplex=qplex.HPARAMS,
    indep_q=indep_q.HPARAMS,
    team_random=team_baselines.HPARAMS,
    team_scripted=team_baselines.HPARAMS,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.team("qmix", HPARAMS, arg)
