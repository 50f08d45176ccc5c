r"""OTTO for recommenders: a world of users imagines sessions to learn from.

    python -m jaxrec.main --config=configs/otto_rec.py
    python -m jaxrec.main --config=configs/otto_rec.py --config.policy.method=sqn
    python -m jaxrec.main --config=configs/otto_rec.py:snqn,sqn --config.num_seeds=3

Our own use of the idea of Zhao et al., arXiv 2404.10393 (see configs/otto.py): stage
`world` learns from what simulated users were shown and imagines sessions; stage
`policy` trains a recommender, its loss unchanged, on batches of which the share
`policy.mix.fraction` is imagined. `users/reward` is what new simulated users give. With
names of methods after the colon each is trained without (`<name>`) and with
(`<name>_otto`) the imagined sessions, for equal updates; `embedding_policy` on the
states of a stage `encoder`, which sees real events alone.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ce, embedding_policy, session_world, snqn, sqn

BASES = dict(
    ce=ce.HPARAMS,
    embedding_policy=embedding_policy.HPARAMS,
    snqn=snqn.HPARAMS,
    sqn=sqn.HPARAMS,
)
WORLD_VIEW = dict(impressions=True, window=32)  # items of a session, at most


def world(**fields) -> dict:
    """The stage that learns what users do and imagines sessions."""
    settings = dict(
        steps=3_000,
        batch_size=32,
        log_every=100,
        eval_every=1_000,
        checkpoint_every=500,
        steps_per_call=25,
        evals=("held_out",),
        view=WORLD_VIEW,
    )
    hparams = dict(session_world=session_world.HPARAMS)
    return defaults.stage("session_world", hparams, **settings | fields)


def policy(method: str = "snqn", fraction: float = 0.5, **fields) -> dict:
    """The stage that trains a recommender on real and imagined events."""
    settings = dict(
        steps=3_000,
        eval_every=1_500,
        checkpoint_every=1_500,
        mix=dict(stage="world" if fraction else "", fraction=fraction),
    )
    return defaults.recommender_stage(method, BASES, **settings | fields)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "smoke" or names of methods with commas between."""
    stages = dict(world=world())
    if arg in ("", "smoke"):
        stages["policy"] = policy()
        config = defaults.recommender_run("otto_rec", stages, arg)
        if arg == "smoke":
            small = dict(width=32, num_layers=1, horizon=5, generated=0.1)
            config.world.session_world.update(small)
        return config
    bases = arg.split(",")
    if "embedding_policy" in bases:
        stages["encoder"] = policy("ce", 0.0)
    for base in bases:
        if base not in BASES:
            raise ValueError(f"method {base!r} is unknown: use {', '.join(BASES)}")
        uses = ("encoder",) if base == "embedding_policy" else ()
        stages[base] = policy(base, 0.0, uses=uses)
        stages[f"{base}_otto"] = policy(base, uses=uses)
    return defaults.recommender_run("otto_rec", stages, "")
