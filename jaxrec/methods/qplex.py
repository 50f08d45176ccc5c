"""QPLEX: duplex dueling, the whole class of values with consistent best actions.

Wang et al. 2021, arXiv 2008.01062, in PyMARL2's form and with its learner (see
`team_q`). Its target takes the advantages as zero; under double Q-learning the chosen
action need not be the target network's best, so this is an approximation there.
"""

from typing import Any

from jaxrec.envs import teams
from jaxrec.methods import team_q
from jaxrec.models import mixers
from jaxrec.types import Method

HPARAMS = team_q.HPARAMS | dict(
    heads=4,  # of the importance weights, PyMARL2
    hyper_width=64,  # PyMARL2
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Q_tot = sum_i V'_i + sum_i lambda_i A_i."""
    team = teams.of_info("qplex", info)
    return team_q.make(config, team, mixer(config, team))


def mixer(config: Any, team: teams.Team) -> mixers.QPlex:
    return mixers.QPlex(team.num_actions, config.heads, config.hyper_width)
