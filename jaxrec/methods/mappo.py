"""MAPPO: proximal policy optimisation with a critic that sees the whole state.

Yu et al. 2022, arXiv 2103.01955; see `team_ppo` for what is shared with IPPO. One value
for the team, on the true state; agents that are out of the game do not move the policy.
"""

from typing import Any

from jaxrec.envs import teams
from jaxrec.methods import team_ppo
from jaxrec.types import Method

HPARAMS = dict(team_ppo.HPARAMS)


def make(config: Any, info: dict[str, Any]) -> Method:
    """A recurrent actor on observations, a recurrent critic on states."""
    team = teams.of_info("mappo", info)
    return team_ppo.make(config, team, critic(team))


def critic(team: teams.Team) -> team_ppo.Critic:
    return team_ppo.Critic(lambda view: view.world[..., None, :], 1)
