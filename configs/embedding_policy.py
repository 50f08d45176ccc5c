"""TD3+BC in the space of item embeddings, the nearest items served.

    python -m jaxrec.main --config=configs/embedding_policy.py

Stage `encoder` trains states and items by cross entropy, stage `train` a policy on
them; see configs/otto_rec.py for the same on real and imagined sessions.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ce, embedding_policy


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    hparams = dict(embedding_policy=embedding_policy.HPARAMS)
    stages = dict(
        encoder=defaults.recommender_stage("ce", dict(ce=ce.HPARAMS), steps=5_000),
        train=defaults.recommender_stage(
            "embedding_policy", hparams, uses=("encoder",)
        ),
    )
    return defaults.recommender_run("embedding_policy", stages, arg)
