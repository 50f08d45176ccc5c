"""Value-decomposition networks: the team's value is the sum of the agents'.

Sunehag et al. 2018, arXiv 1706.05296, with PyMARL2's learner (see `team_q`).
"""

from typing import Any

from jaxrec.envs import teams
from jaxrec.methods import team_q
from jaxrec.models import mixers
from jaxrec.types import Method

HPARAMS = dict(team_q.HPARAMS)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Q_tot = sum_i Q_i."""
    return team_q.make(config, teams.of_info("vdn", info), mixer(config, None))


def mixer(config: Any, team: Any) -> mixers.Sum:
    return mixers.Sum()
