"""LEA in our form: a frozen teacher as the environment (after arXiv 2403.16948).

    python -m jaxrec.main --config=configs/lea.py

Stage `teacher` trains by cross entropy the encoder that proposes and rewards; stage
`train` is the method.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ce, lea


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    hparams = dict(ce.HPARAMS)
    hparams["encoder"] = dict(hparams["encoder"], name="sasrec")
    stages = dict(
        teacher=defaults.recommender_stage("ce", dict(ce=hparams), steps=10_000),
        train=defaults.recommender_stage(
            "lea", dict(lea=lea.HPARAMS), uses=("teacher",)
        ),
    )
    return defaults.recommender_run("lea", stages, arg)
