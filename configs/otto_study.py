"""Does OTTO help? Every base algorithm with and without it, on one world model.

    python -m jaxrec.main --config=configs/otto_study.py \
        --config.data.name=Walker2d-v4/medium-replay --config.num_seeds=3 \
        --workdir=runs/study/walker2d-medium-replay
    python -m jaxrec.main --config=configs/otto_study.py:cql,mcq ...
    python -m jaxrec.report runs/study/* --out=study \
        --iqm=eval/normalized_score --task=data.name

The stages are `world`, then for each base `<base>` on the real rows alone and
`<base>_otto` on real and simulated rows, with equal gradient steps. README has the
table.
"""

from ml_collections import ConfigDict

from configs import otto
from jaxrec import defaults


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: names of base algorithms with commas between; "" = td3bc,iql; "smoke"."""
    bases = "td3bc,iql" if arg in ("", "smoke") else arg
    stages = dict(world=otto.world())
    for base in bases.split(","):
        if base not in otto.BASES:
            raise ValueError(f"base {base!r} is unknown: use {', '.join(otto.BASES)}")
        settings = dict(steps=20_000, eval_every=10_000)
        stages[base] = otto.policy(base, 0.0, **settings)
        stages[f"{base}_otto"] = otto.policy(base, **settings)
    config = defaults.run("otto_study", stages, defaults.OFFLINE_RL_DATA)
    return defaults.shortened(config, "smoke" if arg == "smoke" else "")
