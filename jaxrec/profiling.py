"""A trace of some updates of a stage, on request: `--config.profile.steps=200`.

It begins after the first call of a run, which compiles, and ends with the call that
reaches so many updates: WORKDIR/<stage>/profile, to be read by TensorBoard's profile
plug-in or Perfetto. Traces are large, some MB a second: keep them short.

Of several processes each traces its own devices, in a folder of its own with its
number: WORKDIR/<stage>/profile/0 and so on. JAX names a file by the machine and the
second, so processes of one machine would write the same one.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrec import hosts, logs

HPARAMS = dict(steps=0)  # of runs that do not say: no trace


@contextlib.contextmanager
def tracer(steps: int, path: Path) -> Iterator[Callable[[int, Any], None]]:
    """A function to be told (updates done, state) before every call of a program.

    Nothing is traced where the run ends with its first call.
    """
    seen: list[int] = []  # updates done before each call
    first: int | None = None  # of the trace
    done = not steps

    def end(state: Any) -> None:
        nonlocal first, done
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        logs.say(f"trace of the updates from {first} on: {path}")
        first, done = None, True

    def tell(step: int, state: Any) -> None:
        nonlocal first
        if done:
            return
        seen.append(step)
        if first is None and len(seen) > 1:
            jax.block_until_ready(state)
            own = path / str(jax.process_index()) if hosts.many() else path
            jax.profiler.start_trace(str(own))
            first = step
        elif first is not None and step >= first + steps:
            end(state)

    try:
        yield tell
    finally:
        if first is not None:
            end(None)
        elif seen and not done:
            logs.say("no trace: the run ended with its first call, see steps_per_call")
