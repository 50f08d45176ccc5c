"""SMORL: accuracy, diversity and novelty (Stamenkovic et al. 2022, arXiv 2110.15097).

    python -m jaxrec.main --config=configs/smorl.py

Stage `embed` trains by cross entropy the item vectors that measure diversity; stage
`train` is the method.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ce, smorl


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    hparams = dict(ce.HPARAMS)
    stages = dict(
        embed=defaults.recommender_stage("ce", dict(ce=hparams), steps=10_000),
        train=defaults.recommender_stage(
            "smorl", dict(smorl=smorl.HPARAMS), uses=("embed",)
        ),
    )
    return defaults.recommender_run("smorl", stages, arg)
