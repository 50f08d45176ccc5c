"""Timing for benchmarks: CPU beside wall time, rivals in turn, compiled memory.

On a machine that others use too, wall time says who else was busy; the time of all
threads of this process does not, so on a CPU the ratios are of CPU time. Rivals are
measured in turn, round after round, and compared by their medians.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxrec.speed import memory as memory


class Timing(NamedTuple):
    """Milliseconds per unit of work: medians over the rounds, and the spread."""

    cpu_ms: float
    wall_ms: float
    cpu_ms_min: float
    cpu_ms_max: float

    def ms(self) -> float:
        """CPU time where the work is done by the CPU, else wall time."""
        return self.cpu_ms if jax.default_backend() == "cpu" else self.wall_ms


def in_turn(
    rivals: Mapping[str, tuple[Callable[[], Any], int]],
    rounds: int,
    settled: bool = False,
) -> dict[str, Timing]:
    """Time name -> (function, units of work in one call of it).

    A function returns what must be ready before the clock stops. Each is called once
    before the rounds, to be warm; with `settled` also before each timed call of it. A
    short function pays for the one before it otherwise: after one that needs hundreds
    of megabytes the memory comes from the system anew, and the caches are cold.
    """
    for run, _ in rivals.values():
        jax.block_until_ready(run())
    cpu = {name: [] for name in rivals}
    wall = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, (run, units) in rivals.items():
            if settled:
                jax.block_until_ready(run())
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            jax.block_until_ready(run())
            wall[name].append(1e3 * (time.perf_counter() - wall_start) / units)
            cpu[name].append(1e3 * (time.process_time() - cpu_start) / units)
    return {
        name: Timing(
            statistics.median(cpu[name]),
            statistics.median(wall[name]),
            min(cpu[name]),
            max(cpu[name]),
        )
        for name in rivals
    }


def compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    """The program and the seconds that its compilation took."""
    start = time.perf_counter()
    program = lowered.compile()
    return program, time.perf_counter() - start


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return dict(
        device=jax.devices()[0].device_kind,
        backend=jax.default_backend(),
        cores=len(cores),
        processor=platform.processor() or platform.machine(),
        jax=jax.__version__,
        python=platform.python_version(),
    )
