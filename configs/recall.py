r"""Recall of what happened thousands of events ago: Mamba-2 against a window of 200.

    python -m jaxrec.main --config=configs/recall.py --workdir=runs/recall

Both stages learn from the same synthetic histories (jaxrec/data/lifelong.py), in which
items are planted that a cue asks for again up to 1,500 events later, and are asked on
held-out histories for items of up to 5,000 events ago. The loss is that of the recalls
alone, so that an hour of one core is enough. SASRec sees the last 200 events: of what
lies further back it knows nothing, and guesses 10 of the 100 items in question (HR@10
0.10).
`plots/recall_by_lag.png` has HR@10 against the lag. All settings are ours. Mamba-2
recalls all of it, what was 5,000 events ago too (README): 66 minutes on one core.
"""

import copy

from ml_collections import ConfigDict

from configs.recmamba import SMALL
from jaxrec import defaults
from jaxrec.data import lifelong
from jaxrec.methods import recmamba

WINDOW = 200


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    mamba2, sasrec = copy.deepcopy(recmamba.HPARAMS), copy.deepcopy(recmamba.HPARAMS)
    mamba2["encoder"].update(
        width=32,
        num_layers=1,
        state=16,
        expand=4,
        head_dim=8,  # 16 heads: one for a pair of marker and cue, to forget on its own
        dt_rank=16,
        init_scheme="selective",
        time_chunk=512,
        dropout=0.0,
    )
    for hparams in (mamba2, sasrec):
        hparams["targets"] = "recalls"
        hparams["optim"].update(lr=4e-3, schedule="cosine", warmup=30)
    sasrec["encoder"].update(
        name="sasrec",
        width=32,
        num_layers=2,
        prenorm="all",
        ffn=4,
        scale_embedding=1,
        dropout=0.0,
    )
    common = dict(log_every=50, steps_per_call=10, evals=("recall_by_lag",))
    stages = dict(
        mamba2=defaults.stage(
            "recmamba",
            dict(recmamba=mamba2),
            steps=10_000,
            batch_size=1,  # rows
            eval_every=0,
            checkpoint_every=200,
            view=dict(examples="packed", seq_len=6_144),
            **common,
        ),
        sasrec=defaults.stage(
            "recmamba",
            dict(recmamba=sasrec),
            steps=2_000,
            batch_size=32,  # windows
            eval_every=0,
            checkpoint_every=200,
            view=dict(examples="events", seq_len=WINDOW),
            **common,
        ),
    )
    data = defaults.RECOMMENDER_DATA | dict(
        source="synthetic_lifelong", lifelong=lifelong.HPARAMS
    )
    config = defaults.run("recall", stages, data)
    config.headline = f"test/lag_{max(lifelong.HPARAMS['lags'])}/hr@10"
    config.eval.batch_size = 16  # windows of up to 6,144 events
    if arg == "smoke":
        config = defaults.shortened(config, arg)
        config.data.lifelong.update(SMALL)
        config.mamba2.data.seq_len, config.sasrec.data.seq_len = 64, 20
        config.headline = "test/lag_40/hr@10"
    elif arg:
        raise ValueError(f"config argument {arg!r} is unknown: there is only smoke")
    return config
