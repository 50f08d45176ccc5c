"""How far a world model can be trusted: against the simulator under the same actions.

    python -m jaxrec.main --config=configs/world_accuracy.py \
        --config.data.name=Hopper-v4/medium-replay

An ensemble of world transformers and one of MLPs, trained on the same windows with the
same members, batch and steps. From held-out states both are asked for 50 steps under
perturbed actions of the data, and so is the simulator: `world/rmse@h` and
`world/reward_mae@h` at h = 1, 5, 10, 20, 50, the rank correlation of the ensemble's
disagreement with the true error, the share of the worst steps that its threshold
catches, and coverage.
"""

from ml_collections import ConfigDict

from configs import otto
from jaxrec import defaults


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    settings = dict(eval_every=0, evals=("held_out", "world_accuracy"))
    stages = {
        method: otto.world(method=method, **settings)
        for method in ("world_transformer", "world_mlp")
    }
    stages["world_mlp"]["world_mlp"] |= dict(members=3)
    config = defaults.run("world_accuracy", stages, defaults.OFFLINE_RL_DATA)
    return defaults.shortened(config, arg)
