r"""SIDIFF for recommenders: infer a user's profile from a short session, then rank.

    python -m jaxrec.main --config=configs/sidiff_rec.py
    python -m jaxrec.main --config=configs/sidiff_rec.py:all --config.num_seeds=3
    python -m jaxrec.main --config=configs/sidiff_rec.py:none,diffusion,oracle \
        --config.data.source=shared --config.data.name=ml-1m --config.data.seq_len=200

Stage `inference` learns p(profile | last L events) (task A, `valid/L3/recall@20` of the
withheld items), the ranker the next item from session and inferred profile (task B,
`valid/L3/ndcg@10`), each for L = 1, 3, 5, 10. With names after the colon every one is
a ranker of its own, at equal updates: `none` (session only), `regressor`, `vae`,
`diffusion`, `diffusion1` (the same model in one step), `oracle` (the true profile),
`placebo` (another user's); `all` is all of them. A profile reaches back `data.seq_len`
events before the event to predict and never past it. The recommender form is ours, and
so is every number; the idea is that of arXiv 2408.09501.

On the log of simulated users by default: no files, no network. Sets of shared data:
ml-1m (no time stamps: leave-one-out) and retailrocket-events (by time; with
`--config.data.session_by=user` a visitor's sessions are one history).
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import profile, sidiff_rec

INFERRED = ("regressor", "vae", "diffusion")
ARMS = ("none", *INFERRED, "diffusion1", "oracle", "placebo")


def infer(kind: str = "diffusion", **fields) -> dict:
    """The stage that learns to complete profiles."""
    hparams = dict(profile.HPARAMS)
    hparams["generator"] = dict(hparams["generator"], kind=kind)
    settings = dict(steps=3_000, evals=("held_out",), eval_every=1_000)
    hparams = dict(profile=hparams)
    return defaults.recommender_stage("profile", hparams, **settings | fields)


def rank(stage: str = "inference", inference: str = "inferred", **changes) -> dict:
    """The stage that ranks the next item, `stage` imagining profiles."""
    hparams = sidiff_rec.HPARAMS | dict(stage=stage, inference=inference) | changes
    return defaults.recommender_stage(
        "sidiff_rec",
        dict(sidiff_rec=hparams),
        steps=3_000,
        eval_every=1_000,
        evals=("held_out", "ranking", "users"),
        uses=(stage,) if stage else (),
    )


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "smoke", "all" or names of ARMS with commas between."""
    if arg in ("", "smoke"):
        stages = dict(inference=infer(), ranker=rank())
        return finished(defaults.recommender_run("sidiff_rec", stages, arg))
    arms = ARMS if arg == "all" else tuple(arg.split(","))
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"arm {arm!r} is unknown: use {', '.join(ARMS)} or all")
    kinds = [k for k in INFERRED if k in {arm.removesuffix("1") for arm in arms}]
    if not kinds and set(arms) != {"none"}:
        kinds = ["regressor"]  # the controls take their codec from a stage
    stages = {f"inference_{kind}": infer(kind) for kind in kinds}
    for arm in arms:
        if arm == "none":
            stages[arm] = rank("", "none")
        elif arm in ("oracle", "placebo"):
            stages[arm] = rank(f"inference_{kinds[0]}", arm)
        else:
            few = dict(sampler_steps=1) if arm == "diffusion1" else {}
            stages[arm] = rank(f"inference_{arm.removesuffix('1')}", **few)
    return finished(defaults.recommender_run("sidiff_rec", stages, ""))


def finished(config: ConfigDict) -> ConfigDict:
    """With how far back a profile reaches, and the metrics of short sessions."""
    config.data.seq_len = 50
    config.headline = config.select = "valid/L3/ndcg@10"
    return config
