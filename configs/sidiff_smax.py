"""SIDIFF in our form on SMAX 3m (JaxMARL); needs the extra: pip install 'jaxrec[marl]'.

    python -m jaxrec.main --config=configs/sidiff_smax.py --config.data.name=2s3z

States as vectors of all units, a denoiser of three layers of 256; `inference` and K as
in `configs/sidiff.py`. SMAX is not StarCraft: its win rates are not to be set beside
SMAC's.
"""

from ml_collections import ConfigDict

from configs import sidiff


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke"."""
    config = sidiff.get_config(arg)
    config.name = config.name.replace("sidiff", "sidiff_smax")
    config.data.update(source="smax", name="3m", settings="")
    if arg != "smoke":
        config.train.sidiff.update(width=256, num_layers=3)
    return config
