"""OTTO: offline trajectory optimisation with world transformers.

    python -m jaxrec.main --config=configs/otto.py
    python -m jaxrec.main --config=configs/otto.py --config.policy.method=iql
    python -m jaxrec.main --config=configs/otto.py --config.data.name=Walker2d-v4/medium
    python -m jaxrec.main --config=configs/otto.py --config.world.method=world_mlp

After Zhao et al., arXiv 2404.10393 (KDD 2025). Stage `world` collects or reads the
data, trains an ensemble of world transformers and simulates trajectories; stage
`policy` trains a base algorithm, its loss unchanged, on batches of which the share
`policy.mix.fraction` is simulated; 0 is the base algorithm alone. All sizes, strategies
and shares are our own choice: the paper's are not known to us, and no number of the
paper is claimed. Measured results stand in README.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import cql, iql, mcq, td3bc, world_mlp, world_transformer

BASES = dict(cql=cql.HPARAMS, iql=iql.HPARAMS, mcq=mcq.HPARAMS, td3bc=td3bc.HPARAMS)
WORLDS = dict(world_mlp=world_mlp.HPARAMS, world_transformer=world_transformer.HPARAMS)


def world(method: str = "world_transformer", **fields) -> dict:
    """The stage that trains a world model and simulates."""
    settings = dict(
        steps=2_000,
        batch_size=64,
        log_every=100,
        eval_every=500,
        checkpoint_every=500,
        steps_per_call=25,
        evals=("held_out",),
        view=dict(window=10, valid_fraction=0.1, top=1.0),
    )
    return defaults.stage(method, WORLDS, **settings | fields)


def policy(method: str = "td3bc", fraction: float = 0.5, **fields) -> dict:
    """The stage that trains a base algorithm on real and simulated rows."""
    settings = dict(
        steps=40_000,
        evals=("simulator",),
        mix=dict(stage="world" if fraction else "", fraction=fraction),
    )
    return defaults.stage(method, BASES, **settings | fields)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    stages = dict(world=world(), policy=policy())
    config = defaults.run("otto", stages, defaults.OFFLINE_RL_DATA)
    return defaults.shortened(config, arg)
