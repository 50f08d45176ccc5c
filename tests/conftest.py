"""Tests run on eight CPU devices, with JAX's strict checks on.

The quick tests spend most of their time in the compiler, so it optimises little there,
in this process and those that tests start (JAX_DISABLE_MOST_OPTIMIZATIONS=0 brings it
back). The slow ones run what users run. What one process has compiled the others read,
from a directory that goes when the tests end.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jaxrec-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not slow":
        asked = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", asked == "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data outside the project; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("JAXREC_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}: set JAXREC_SHARED_DATA")
    return path
