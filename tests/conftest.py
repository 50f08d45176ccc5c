"""Tests run on eight CPU devices, with JAX's strict checks on."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data outside the project; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("JAXREC_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}: set JAXREC_SHARED_DATA")
    return path
