"""Does OTTO help? Every base algorithm with and without it, and with its controls.

    python -m jaxrec.main --config=configs/otto_study.py \
        --config.data.name=Walker2d-v4/medium-replay --config.num_seeds=3 \
        --workdir=runs/study/walker2d-medium-replay
    python -m jaxrec.main --config=configs/otto_study.py:cql,mcq ...
    python -m jaxrec.main --config=configs/otto_study.py:td3bc/otto,best,noise ...
    python -m jaxrec.report runs/study/* --out=study \
        --iqm=eval/normalized_score --task=data.name

For each base the stages are `<base>`, on the real rows alone, and with equal gradient
steps `<base>_otto`, half on simulated rows, `<base>_best`, half on real rows of the
best tenth of the episodes (what simulations that start there may do by repetition
alone), `<base>_noise`, half on real rows with noise on their actions, and
`<base>_truth`, half on what the simulator itself answers to the actions of the
simulations, as a world model without error would (arm `truth`, with `otto`). All bases
standardise observations here, also those whose official code does not: in so few
updates they would be judged by that. README has the table.
"""

from ml_collections import ConfigDict

from configs import otto
from jaxrec import defaults
from jaxrec.methods import real_rows

# arm: stage of its second half
ARMS = dict(otto="world", best="best", noise="noise", truth="truth")


def real(top: float, mix: str = "", **settings) -> dict:
    """A stage that hands on real rows of episodes that a world model would train on."""
    hparams = dict(real_rows=real_rows.HPARAMS | settings)
    view = dict(window=0, valid_fraction=0.1 if top == 1 else 0.0, top=top)
    blend = dict(stage=mix, fraction=0.5 if mix else 0.0)
    return defaults.stage("real_rows", hparams, steps=1, view=view, mix=blend)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: bases, and after a slash arms, with commas; "" = td3bc,iql/otto,best."""
    smoke = arg == "smoke"
    bases, _, arms = ("" if smoke else arg).partition("/")
    arms = (arms or "otto,best").split(",")
    sources = dict(
        world=otto.world(),
        best=real(top=0.1),
        noise=real(top=1.0, sigma=0.1),
        truth=real(top=1.0, mix="world", replay=True),
    )
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"arm {arm!r} is unknown: use {', '.join(ARMS)}")
    if "truth" in arms and "otto" not in arms:
        raise ValueError(
            "arm 'truth' answers the simulations of 'otto': use otto,truth"
        )
    arms = [arm for arm in ARMS if arm in arms]  # simulations come before their truth
    stages = {ARMS[arm]: sources[ARMS[arm]] for arm in arms}
    for base in (bases or "td3bc,iql").split(","):
        if base not in otto.BASES:
            raise ValueError(f"base {base!r} is unknown: use {', '.join(otto.BASES)}")
        settings = dict(steps=20_000, eval_every=10_000)
        stages[base] = otto.policy(base, 0.0, **settings)
        for arm in arms:
            mix = dict(stage=ARMS[arm], fraction=0.5)
            stages[f"{base}_{arm}"] = otto.policy(base, **settings | dict(mix=mix))
    for name in stages:
        if name.partition("_")[0] in otto.BASES:
            section = stages[name]
            section[section["method"]]["standardise"] = True
    config = defaults.run("otto_study", stages, defaults.OFFLINE_RL_DATA)
    return defaults.shortened(config, "smoke" if smoke else "")
