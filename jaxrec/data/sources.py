"""SOURCES: name -> (config) -> Dataset, a file each."""

from collections.abc import Callable
from typing import Any

from jaxrec.data import d4rl, gym, minari, npz, recommender, teams, toy
from jaxrec.data.trajectories import Trajectories, dataset
from jaxrec.envs import gym as envs
from jaxrec.envs.teams import TEAMS
from jaxrec.types import Dataset


def offline_rl(load: Callable[[Any], Trajectories]) -> Callable[[Any], Dataset]:
    """A source of transitions or windows from one of trajectories."""

    def source(config: Any) -> Dataset:
        if config.env_id and envs.installed():
            envs.check_id(config.env_id)
        trajectories = load(config)
        if config.env_id:
            trajectories.info["env_id"] = config.env_id
        return dataset(trajectories, config)

    return source


SOURCES = {
    "gym": offline_rl(gym.load),
    "d4rl": offline_rl(d4rl.load),
    "hdf5": offline_rl(d4rl.load_hdf5),
    "minari": offline_rl(minari.load),
    "npz": offline_rl(npz.load),
    "toy": offline_rl(toy.load),
    "simulated": recommender.simulated_users,
    "synthetic_lifelong": recommender.lifelong_users,
    **{name: recommender.source(name) for name in recommender.READERS},
    **{name: teams.source(name) for name in TEAMS},
}
