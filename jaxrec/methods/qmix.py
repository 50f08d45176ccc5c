"""QMIX: the team's value is monotone in the agents', by a network that sees the state.

Rashid et al. 2018, arXiv 1803.11485, with PyMARL2's learner (see `team_q`). The mixer
sees the true state in training; playing needs the agents' own values alone.
"""

from typing import Any

from jaxrec.envs import teams
from jaxrec.methods import team_q
from jaxrec.models import mixers
from jaxrec.types import Method

HPARAMS = team_q.HPARAMS | dict(
    embed=32,  # of the mixer, official
    hyper_width=64,  # of the networks that make its weights, PyMARL2
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Q_tot = f(Q_1, ..., Q_A; s), df / dQ_i >= 0."""
    return team_q.make(config, teams.of_info("qmix", info), mixer(config, None))


def mixer(config: Any, team: Any) -> mixers.QMix:
    return mixers.QMix(config.embed, config.hyper_width)
