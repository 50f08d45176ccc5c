r"""RecMamba: whole histories of thousands of events, packed, with a carried state.

    python -m jaxrec.main --config=configs/recmamba.py
    python -m jaxrec.main --config=configs/recmamba.py:paper
    python -m jaxrec.main --config=configs/recmamba.py \
        --config.data.source=kuairand --config.data.path=KuaiRand-1K/data \
        --config.data.hash_items=1000000 \
        --config.train.recmamba.loss=sampled --config.train.recmamba.sparse=True

Yang et al., arXiv 2403.16371 (see jaxrec/methods/recmamba.py). The data are synthetic
histories with planted recall: `test/lag_1500/hr@10` is the share of the events that
only the item 1,500 events before tells, ranked among all items.

`recommended`, the default, is ours: two residual blocks of Mamba-2, softmax over the
catalogue, packed rows. `paper` is the published model on what its code trains on: one
Mamba-1 mixer and nothing else, binary cross entropy with one negative, the last window
of each user, batches of users; comparable, not recommended. Other encoders train on the
same windows: `--config.train.recmamba.encoder.name=sasrec --config.train.data.examples=
users`.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.data import lifelong
from jaxrec.methods import recmamba

LAGS = 10, 100, 1_500
PAPER = dict(num_layers=1, name="mamba", block="paper", dropout=0.2)
SMALL = dict(
    num_users=60,
    num_items=100,
    lags=(5, 40),
    train_lags=(3, 40),
    pairs=2,
    recalled=20,
    min_length=60,
    median_length=90,
    max_length=300,
    valid=0.1,
    test=0.1,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "recommended", "paper" or "smoke"."""
    section = defaults.stage(
        "recmamba",
        dict(recmamba=recmamba.HPARAMS),
        steps=3_000,
        batch_size=8,  # rows
        log_every=50,
        eval_every=500,
        checkpoint_every=500,
        steps_per_call=10,
        evals=("recall_by_lag",),
        view=defaults.HISTORY_VIEW,
    )
    data = defaults.RECOMMENDER_DATA | dict(
        source="synthetic_lifelong",
        seq_len=2_048,
        lifelong=lifelong.HPARAMS | dict(lags=LAGS),
    )
    config = defaults.run("recmamba", {"train": section}, data)
    config.headline = config.select = f"valid/lag_{max(LAGS)}/hr@10"
    config.eval.batch_size = 16  # windows of data.seq_len events
    if arg == "paper":
        config.name += "_paper"
        config.train.data.examples = "users"
        config.train.recmamba.encoder.update(PAPER)
        config.train.recmamba.update(loss="bce")
        config.train.recmamba.optim.update(lr=4e-4, clip=0.0, warmup=0)
    elif arg == "smoke":
        config = defaults.shortened(config, arg)
        config.data.seq_len = 64
        config.data.lifelong.update(SMALL)
        config.train.recmamba.encoder.update(width=32, head_dim=32, state=8)
        config.headline = config.select = "valid/lag_40/hr@10"
    elif arg not in ("", "recommended"):
        raise ValueError(
            f"config argument {arg!r} is unknown: recommended, paper or smoke"
        )
    return config
