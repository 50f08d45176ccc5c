"""How fast a stage trains, and what its program needs: for the summary and the curves.

Clocks stand in `summary.json` and TensorBoard alone: the lines of `metrics.jsonl` are
those of an undisturbed run, whatever interrupted it.
"""

import time
from typing import Any

import jax

from jaxrec import flops, logs


class Meter:
    """Time without compilation and evaluation, and the costs of the compiled update."""

    def __init__(self, name: str, mesh: jax.sharding.Mesh, start: int) -> None:
        kind = mesh.devices.flat[0].device_kind
        self.name, self.start, self.devices = name, start, mesh.size
        self.peak = flops.peak(kind)
        self.begun, self.paused, self.compiling = time.monotonic(), 0.0, 0.0
        self.mark = (start, 0.0)  # step and seconds at the last lap
        self.flops, self.memory = 0.0, {}
        self.shown = ""  # for the progress line

    def compiled(self, traced: jax.stages.Traced, size: int, since: float) -> Any:
        """The program of a call of `size` updates whose tracing began at `since`."""
        program = traced.lower().compile()
        self.compiling += time.monotonic() - since
        first = not self.memory
        self.flops, self.memory = flops.count(traced.jaxpr) / size, memory(program)
        if first and self.memory:
            fields = ("argument_bytes", "temporary_bytes")
            sizes = (f"{self.memory[field] / 1e6:,.1f} MB" for field in fields)
            logs.say(
                f"{self.name}: {self.flops / 1e9:,.4g} GFLOP an update; a device needs "
                + "{} for state and data and {} to compute".format(*sizes)
            )
        return program

    def pause(self, seconds: float) -> None:
        """Leave these seconds out."""
        self.paused += seconds

    def seconds(self) -> float:
        """Of training so far."""
        return time.monotonic() - self.begun - self.paused - self.compiling

    def rates(self, updates: int, seconds: float) -> dict[str, float]:
        """Updates and FLOPs a second, and their share of what the devices can do.

        The share only of devices whose peak is known.
        """
        speed = updates / max(seconds, 1e-9)
        found = dict(steps_per_second=speed, flops_per_second=speed * self.flops)
        if self.peak is not None:
            full = self.peak * self.devices
            found["utilisation"] = found["flops_per_second"] / full
        return found

    def lap(self, step: int) -> dict[str, float]:
        """`speed/...` since the last lap."""
        before, then = self.mark
        self.mark = step, self.seconds()
        rates = self.rates(step - before, self.mark[1] - then)
        if "utilisation" in rates:
            self.shown = f"{rates['utilisation']:.1%} of peak FLOPs"
        return {f"speed/{name}": value for name, value in rates.items()}

    def facts(self, step: int) -> dict[str, Any]:
        """For the summary, at the end of the stage."""
        rates = self.rates(step - self.start, self.seconds())
        return {
            "compile_seconds": round(self.compiling, 2),
            **self.memory,
            "flops_per_update": self.flops,
            "steps_per_second": round(rates.pop("steps_per_second"), 1),
            **{name: float(f"{value:.4g}") for name, value in rates.items()},
        }


def memory(program: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a compiled program on a device, where the backend tells.

    Arguments, temporaries, outputs that reuse no argument.
    """
    found = program.memory_analysis()
    if found is None:
        return {}
    return dict(
        argument_bytes=found.argument_size_in_bytes,
        temporary_bytes=found.temp_size_in_bytes,
        output_bytes=found.output_size_in_bytes - found.alias_size_in_bytes,
    )
