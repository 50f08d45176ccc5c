"""SIDIFF (arXiv 2408.09501) in our form: diffusion state inference on QMIX.

    python -m jaxrec.main --config=configs/sidiff.py
    python -m jaxrec.main --config=configs/sidiff.py \
        --config.train.sidiff.inference=regressor     # none, vae, oracle, placebo
    python -m jaxrec.main --config=configs/sidiff.py \
        --config.train.sidiff.generator.diffusion.steps=1    # K, 1 to 100

By default on `2t_vs_4e_open7` with a view of two tiles (ours: with three it sees most
of the map), states as entities. The paper's numbers are unknown to us; all are ours.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import sidiff


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    config = defaults.team("sidiff", {"sidiff": sidiff.HPARAMS}, arg)
    config.data.settings = "radius=2"
    section = config.train.sidiff
    if arg == "smoke":
        small = dict(num_envs=8, chunk=8, width=16)
        section.value.update(small | dict(replay=64))
        section.policy.update(small)
        section.update(width=16, num_layers=1, num_heads=2, generator_chunks=4)
        section.extractor.update(size=8, width=16, num_heads=2)
        section.generator.diffusion.update(steps=2, train_steps=10)
    return config
