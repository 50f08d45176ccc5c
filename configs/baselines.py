"""Recommenders that count: POP, S-POP, last item, item-kNN, SKNN, VSKNN.

    python -m jaxrec.main --config=configs/baselines.py

A stage each; nothing is trained by gradients, so one step is enough. Every table of
learned recommenders has these rows beside it.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import item_knn, neighbours, popularity

HPARAMS = dict(
    pop=popularity.HPARAMS,
    session_pop=popularity.HPARAMS,
    last_item=popularity.HPARAMS,
    item_knn=item_knn.HPARAMS,
    sknn=neighbours.SKNN_HPARAMS,
    vsknn=neighbours.VSKNN_HPARAMS,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "paper", "recommended" or "smoke", see `defaults.recommender_run`."""
    stages = {
        name: defaults.recommender_stage(name, {name: hparams}, steps=1)
        for name, hparams in HPARAMS.items()
    }
    return defaults.recommender_run("baselines", stages, arg)
