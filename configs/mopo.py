"""MOPO (Yu et al., 2020): soft actor-critic in an ensemble learnt from the data.

    python -m jaxrec.main --config=configs/mopo.py \
        --config.data.name=HalfCheetah-v4/medium --config.policy.mopo.penalty=0.5

Stage `world` trains the ensemble, stage `policy` the agent in it. OfflineRL-Kit's
hyper-parameters for hopper-medium-replay (those of other sets: jaxrec/methods/mopo.py);
10,000 and 50,000 updates (ours, for a CPU) instead of some 50 passes over the data and
3 million.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import mopo, world_mlp, world_transformer

# The agent rolls the model out itself: the stage's own simulations are a sample.
SAMPLE = dict(generated=1e-3, correction="none")
WORLDS = dict(
    world_mlp=world_mlp.HPARAMS | SAMPLE,
    world_transformer=world_transformer.HPARAMS | SAMPLE,
)


def world(**fields) -> dict:
    """The stage that trains the ensemble."""
    settings = dict(
        steps=10_000,
        log_every=500,
        evals=("held_out",),
        view=dict(defaults.OFFLINE_RL_VIEW, valid_fraction=0.1),
    )
    return defaults.stage("world_mlp", WORLDS, **settings | fields)


def policy(method: str, hparams: dict, **fields) -> dict:
    """The stage that trains the agent."""
    settings = dict(steps=50_000, evals=("simulator",), uses=("world",))
    return defaults.stage(method, {method: hparams}, **settings | fields)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    stages = dict(world=world(), policy=policy("mopo", mopo.HPARAMS))
    config = defaults.run("mopo", stages, defaults.OFFLINE_RL_DATA)
    return defaults.shortened(config, arg)
