r"""LEA in our form: a frozen teacher as the environment (after arXiv 2403.16948).

    python -m jaxrec.main --config=configs/lea.py
    python -m jaxrec.main --config=configs/lea.py:vectors \
        --config.train.lea.item_vectors=vectors.npy

Stage `teacher` trains by cross entropy the encoder that proposes and rewards; stage
`train` is the method. With `vectors` item vectors of your own, such as of the items'
texts, are the teacher and none is trained.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ce, lea


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "vectors", or as in `defaults.recommender_run`."""
    if arg == "vectors":
        return defaults.recommender("lea", lea.HPARAMS, "")
    hparams = dict(ce.HPARAMS)
    hparams["encoder"] = dict(hparams["encoder"], name="sasrec")
    stages = dict(
        teacher=defaults.recommender_stage("ce", dict(ce=hparams), steps=10_000),
        train=defaults.recommender_stage(
            "lea", dict(lea=lea.HPARAMS), uses=("teacher",)
        ),
    )
    return defaults.recommender_run("lea", stages, arg)
