"""MAPPO (Yu et al. 2022) in Battle City; also IPPO by --config.train.method=ippo.

    python -m jaxrec.main --config=configs/mappo.py

One train step plays 64 games for 32 steps and passes over them four times. Rates,
clipping and network of the official code; numbers of games, steps and passes are ours.
"""

from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.methods import ippo, mappo

HPARAMS = dict(mappo=mappo.HPARAMS, ippo=ippo.HPARAMS)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    return defaults.team("mappo", HPARAMS, arg)
