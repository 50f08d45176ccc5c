"""The learners of teams by name, alone or with inference; `sidiff` and its controls."""

from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.envs import teams as envs
from jaxrec.methods import indep_q, ippo, mappo, qmix, qplex, team_ppo, team_q, vdn
from jaxrec.methods.inference import Host, Inference
from jaxrec.types import Method

VALUE = dict(indep_q=indep_q, vdn=vdn, qmix=qmix, qplex=qplex)
POLICY = dict(mappo=mappo, ippo=ippo)
NAMES = (*VALUE, *POLICY)
HPARAMS = dict(
    value=team_q.HPARAMS | qmix.HPARAMS | qplex.HPARAMS,  # of hosts with values
    policy=dict(team_ppo.HPARAMS),  # of MAPPO, IPPO
)


def settings_of(config: Any) -> FrozenConfigDict:
    """The section `value` or `policy` of the host, with steps and batch size."""
    section = config.value if config.host in VALUE else config.policy
    shared = dict(steps=config.steps, batch_size=config.batch_size)
    return FrozenConfigDict(ConfigDict(section.to_dict() | shared))


def alone(config: Any, team: envs.Team) -> Method:
    """The host `config.host` that infers nothing."""
    settings = settings_of(config)
    if config.host in VALUE:
        return team_q.make(settings, team, VALUE[config.host].mixer(settings, team))
    return team_ppo.make(settings, team, POLICY[config.host].critic(team))


def make(config: Any, team: envs.Team, inference: Inference) -> Host:
    """The host `config.host` whose agents act and learn on what they infer."""
    settings = settings_of(config)
    if config.host in VALUE:
        mixer = VALUE[config.host].mixer(settings, team)
        return team_q.make_host(settings, team, mixer, inference)
    critic = POLICY[config.host].critic(team)
    return team_ppo.make_host(settings, team, critic, inference)
