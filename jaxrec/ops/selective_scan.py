"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, Algorithm 2).

    h_t = (1 - reset_t) exp(dt_t A) h_{t-1} + dt_t u_t B_t        h [B, D, N]
    y_t = sum_n C_{t,n} h_{t,:,n}

Time is the first axis of every sequence: batch-major inputs would be transposed, at the
price of a copy of each. Differences from the reference kernel: the state goes in (`h0`)
and comes out (`h_last`), and `reset` starts a new segment, so that packed users,
streams longer than a row, serving and splitting time over devices all follow.

Several implementations of one meaning; `choose` picks by the backend.
"""

import jax

from jaxrec.ops import pallas_scan, parallel_scan, recurrence, sequential_scan
from jaxrec.ops.recurrence import Core, Scan, Steps
from jaxrec.types import Array

IMPLEMENTATIONS: dict[str, Core] = {
    "reference": sequential_scan.reference,
    "custom_vjp": sequential_scan.custom_vjp,
    "associative": parallel_scan.associative,
    "two_pass": parallel_scan.two_pass,
    "pallas": pallas_scan.pallas,
}


def choose(backend: str, length: int) -> str:
    """The implementation behind impl="auto"; all mean the same.

    On a GPU each step of a sequential `lax.scan` is a launch, so chunks run side by
    side there. The choice for GPU and TPU is by others' reports, unmeasured by us.
    """
    if length == 1:
        return "reference"
    return "two_pass" if backend == "gpu" else "custom_vjp"


def selective_scan(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    h0: Array | None = None,
    reset: Array | None = None,
    impl: str = "auto",
    chunk: int = 64,
) -> Scan:
    """The scan above, over T steps, differentiable in u, dt, A, B, C and h0.

    u, dt: float[T, B, D], dt >= 0, and dt = 0 leaves the state alone (padding).
    A: float[D, N], negative. B, C: float[T, B, N]. h0: float32[B, D, N], zeros by
    default. reset: bool[T, B], True where step t forgets all that came before it.
    impl: a key of `IMPLEMENTATIONS`, or "auto". chunk: steps between saved states.

    Returns y float32[T, B, D], h_last float32[B, D, N] and the decay; float64 where an
    input is float64. Everything inside is float32 whatever the inputs are.

    Raises ValueError for an unknown impl.
    """
    if impl == "auto":
        impl = choose(jax.default_backend(), len(u))
    steps = Steps(u, dt, B, C, reset)
    return recurrence.scan(IMPLEMENTATIONS, impl, steps, A, h0, chunk)
