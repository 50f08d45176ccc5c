"""Independent PPO: as MAPPO, but each agent's critic sees what the agent sees.

De Witt et al. 2020, arXiv 2011.09533, with the network and code choices of MAPPO (see
`team_ppo`); parameters are shared.
"""

from typing import Any

from jaxrec.envs import teams
from jaxrec.methods import team_ppo
from jaxrec.types import Method

HPARAMS = dict(team_ppo.HPARAMS)


def make(config: Any, info: dict[str, Any]) -> Method:
    """A recurrent actor and a recurrent critic, both on observations."""
    team = teams.of_info("ippo", info)
    return team_ppo.make(config, team, critic(team))


def critic(team: teams.Team) -> team_ppo.Critic:
    return team_ppo.Critic(lambda view: view.observation, team.num_agents)
