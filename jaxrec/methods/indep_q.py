"""Independent Q-learning for teams: every agent learns the team's reward alone.

Tan 1993, "Multi-Agent Reinforcement Learning: Independent vs. Cooperative Agents"; with
the recurrent network, shared parameters and targets of PyMARL2 (see `team_q`). Called
`indep_q` since `iql` is implicit Q-learning here. An agent that is out of the game
learns nothing more (ours).
"""

from typing import Any

from jaxrec.envs import teams
from jaxrec.methods import team_q
from jaxrec.models import mixers
from jaxrec.types import Method

HPARAMS = dict(team_q.HPARAMS)


def make(config: Any, info: dict[str, Any]) -> Method:
    """No mixer: a value for each agent."""
    return team_q.make(config, teams.of_info("indep_q", info), mixer(config, None))


def mixer(config: Any, team: Any) -> mixers.Apart:
    return mixers.Apart()
