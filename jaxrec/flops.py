"""Floating-point operations of an update, and what devices can do at most.

Counted from the jaxpr: matrix products and convolutions, each multiplication with its
addition two; a scan's body as often as it runs, of the branches of a condition the mean
(a delayed actor's share), over all devices and seeds. Not `cost_analysis()` of the
compiled program: it takes the body of every loop once, and the chunked softmax, the
recurrent encoders and the updates of a call are loops. What is no product (an exact
scan, Adam) and kernels written by hand count nothing, so this is a lower bound; but of
mixers that run twice because time is split what the compiler leaves out counts too.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax

# Dense bfloat16 (V100, T4: float16) TFLOP/s of a device, the usual reference of a
# utilisation, whatever precision a run uses. NVIDIA's data sheets of each, without
# sparsity; cloud.google.com/tpu/docs/system-architecture-tpu-vm for TPUs, whose device
# is a chip from v4 on. The first pattern that fits `device_kind` decides.
PEAKS = (
    (r"B200", 2_250.0),
    (r"H200|H100.*HBM3|GH200", 989.4),
    (r"H100 PCIe", 756.0),
    (r"H100 NVL", 835.0),
    (r"A100", 311.9),
    (r"A30\b", 165.0),
    (r"L40S", 362.0),
    (r"\bL4\b", 121.0),
    (r"V100-SXM", 125.0),
    (r"V100-PCIE", 112.0),
    (r"\bT4\b", 65.0),
    (r"^TPU v6 lite|^TPU v6e", 918.0),
    (r"^TPU v5 lite|^TPU v5e", 197.0),
    (r"^TPU v5", 459.0),
    (r"^TPU v4$", 275.0),
)
_SHARE = re.compile(r"share_([\d.]+)")


def peak(device_kind: str) -> float | None:
    """FLOP/s of a device of that kind at most; None for one not listed, as CPUs."""
    for pattern, tera in PEAKS:
        if re.search(pattern, device_kind):
            return 1e12 * tera
    return None


def scope(share: float) -> Any:
    """Loops traced inside whose rounds are not known count by this share of a round."""
    return jax.named_scope(f"share_{share}")


def count(jaxpr: Any, shared: bool = False) -> float:
    """Of a jaxpr, such as `jax.jit(f).trace(*args).jaxpr`; `shared`: see `scope`."""
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * eqn.outvars[0].aval.size * inner
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            size = math.prod(kernel) // max(outputs, 1)
            total += 2.0 * eqn.outvars[0].aval.size * size
        elif name != "pallas_call":
            share, parts = 1.0, list(inner_jaxprs(eqn))
            if name == "while":
                found = _SHARE.search(str(eqn.source_info.name_stack))
                share = float(found[1]) if found and not shared else 1.0
                total += share * sum(count(p, shared or bool(found)) for p in parts)
            elif parts:
                total += times(eqn) * sum(count(p, shared) for p in parts)
    return total


def times(eqn: Any) -> float:
    """How often what is inside an equation runs, but for loops of unknown rounds."""
    name = eqn.primitive.name
    if name == "scan":
        return eqn.params["length"]
    if name == "cond":
        return 1 / len(eqn.params["branches"])
    if name == "shard_map":  # shapes inside are those of one device
        sizes, names = dict(eqn.params["mesh"].shape), eqn.params
        axes = names.get("newly_manual_axes", names.get("manual_axes", ()))
        return math.prod(sizes[axis] for axis in axes)
    return 1.0


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    leaves = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    )
    yield from (x for x in leaves if hasattr(getattr(x, "jaxpr", x), "eqns"))
