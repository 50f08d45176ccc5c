"""Several processes that are one run: how they meet, and what they agree on.

Every process runs the same program on its own devices; a batch, the state and the
metrics are global arrays. Process 0 leads: it alone writes logs, summaries and plots,
and what it reads of the run's folder, the others are told, so that all take the same
turns. A run of one process passes through here untouched.

What is said between processes at set-up goes over the devices, as training does, and
waits as long: where a peer died, its closed connection (gloo, between CPUs) or its
missing heartbeats (`peer_timeout` seconds) end the wait.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.errors import PeerLost, UserError, first_line

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PEER_TIMEOUT = 100  # seconds without a heartbeat, after which a process counts as dead
START_TIMEOUT = 300  # seconds that processes wait for each other at the start
# What a collective or a barrier raises when a peer is gone: the runtime's errors, and
# those that orbax makes of them. The same words in other errors, or in the traceback of
# a callback that the runtime quotes, mean something else.
LOST = {
    jax.errors.JaxRuntimeError: (
        *("gloo", "peer", "heartbeat", "coordination"),
        *("UNAVAILABLE", "DEADLINE_EXCEEDED"),
    ),
    TimeoutError: ("barrier",),
}


def plan(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    detect: bool | None = None,
) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`, None for a run of one process.

    Given values stand before the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, and these before a step of several tasks in Slurm and several
    TPU_WORKER_HOSTNAMES, which JAX itself reads. `detect` True leaves all of it to JAX
    (a TPU slice, MPI), False looks at nothing. Raises UserError for half of an address.
    """
    given = (coordinator, num_processes, process_id)
    if detect is False:
        if any(value is not None for value in given):
            raise UserError("--nodistributed takes no --coordinator and no numbers")
        return None
    address, count, number = (
        environ.get(name) if value is None else value
        for name, value in zip(VARIABLES, given)
    )
    if count is not None or number is not None:
        return explicit(address, count, number)
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    several = tasks != "1" or "," in environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (several or detect):
        if coordinator is not None:
            raise UserError("--coordinator needs --num_processes and --process_id")
        return None
    return {} if address is None else dict(coordinator_address=address)


def explicit(address: Any, count: Any, number: Any) -> dict[str, Any] | None:
    """The three values that name a process, checked; None when it is the only one."""
    try:
        count, number = int(count), int(number)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{count} processes and process id {number}: give both --num_processes and "
            f"--process_id as numbers, or {VARIABLES[1]} and {VARIABLES[2]}"
        ) from error
    if not 0 <= number < count:
        raise UserError(f"process id {number}: ids of {count} processes start at 0")
    if count == 1:
        return None
    if not address or not address.rpartition(":")[2].isdigit():
        raise UserError(
            f"coordinator {address!r}: give the address of process 0 as HOST:PORT by "
            f"--coordinator or {VARIABLES[0]}"
        )
    return dict(
        coordinator_address=address,
        num_processes=count,
        process_id=number,
        cluster_detection_method="deactivate",
    )


def join(arguments: dict[str, Any], peer_timeout: int = PEER_TIMEOUT) -> None:
    """Meet the other processes; before anything else asks JAX for devices.

    Raises PeerLost when they do not come within START_TIMEOUT seconds.
    """
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=peer_timeout,
            shutdown_timeout_seconds=peer_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise PeerLost(
            f"cannot meet the other processes ({first_line(error)}): start all of them "
            "with one coordinator address that they can reach"
        ) from error


@contextlib.contextmanager
def membership() -> Iterator[None]:
    """Work as one of several processes; the others are not waited for in vain.

    Only the leader's lines are shown. An error that a lost peer caused becomes
    PeerLost; any other ends this process, and with it the others: JAX ends them when
    they miss its heartbeats, and itself waits no longer for them.
    """
    if not many():
        yield
        return
    with contextlib.ExitStack() as stack:
        if not is_lead():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except Exception as error:  # orbax and its threads raise many types
            if (cause := lost_peer(error)) is None:
                raise
            raise PeerLost(
                f"another process is gone ({whole_text(cause)}): start all of them "
                "again with the same command, which goes on from the last checkpoint"
            ) from error


def lost_peer(error: BaseException | None) -> BaseException | None:
    """The error of a broken connection, of those that led to `error`."""
    while error is not None:
        said = str(error).partition("Traceback")[0]
        for kind, words in LOST.items():
            if isinstance(error, kind) and any(word in said for word in words):
                return error
        error = error.__cause__ or error.__context__
    return None


def leave(status: int) -> NoReturn:
    """End this process of several at once: JAX would wait for those that are lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def whole_text(error: BaseException) -> str:
    """Type and words of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:1000]


def many() -> bool:
    """Whether this run has several processes; asks for no devices when it has one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lead() -> bool:
    """Whether this process writes and decides."""
    return not many() or jax.process_index() == 0


def lead(action: Callable[[], Any]) -> Any:
    """What `action` gives in process 0, told to all; JSON values.

    Its UserError is raised in all of them.
    """
    if not many():
        return action()
    reply: dict[str, Any] = {}
    if is_lead():
        try:
            reply["value"] = action()
        except (UserError, OSError) as error:
            reply["error"] = str(error)
    text = np.frombuffer(json.dumps(reply).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    if is_lead():
        padded[:] = text
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded)))
    reply = json.loads(told)
    if "error" in reply:
        raise UserError(reply["error"])
    return reply["value"]


def together(action: Callable[[], Any]) -> Any:
    """`action` in every process; a UserError of one is raised in all."""
    if not many():
        return action()
    found, text = None, b""
    try:
        found = action()
    except UserError as error:
        text = str(error).encode()[:1000] or b"error"
    padded = np.zeros(1000, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    for number, row in enumerate(multihost_utils.process_allgather(padded)):
        if message := bytes(np.asarray(row)).rstrip(b"\0").decode(errors="ignore"):
            raise UserError(f"{message} (process {number})")
    return found


def lead_first(action: Callable[[], Any]) -> Any:
    """`together`, but the others wait for the leader, and find what it has cached."""
    if not many():
        return action()
    first = together(action if is_lead() else lambda: None)
    rest = together((lambda: None) if is_lead() else action)
    return first if is_lead() else rest


def check_equal(what: str, number: int, remedy: str) -> None:
    """Raises UserError, in all processes, unless they all have the same uint32."""
    if not many():
        return
    found = multihost_utils.process_allgather(np.uint32(number))
    if len(set(np.asarray(found).tolist())) > 1:
        raise UserError(f"the processes have different {what}: {remedy}")


def most(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if not many():
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def agreed(asked_to_stop: Callable[[], int], mesh: Mesh) -> Callable[[], int]:
    """`asked_to_stop`, with the answer that any process had at the call before.

    A signal reaches processes at different times, and one may reach only one of them;
    all have to save the same step. The devices take the maximum while they train, so
    that asking waits for nothing but the call before the last.
    """
    if not many():
        return asked_to_stop
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    waiting: list[jax.Array] = []

    def ask() -> int:
        mine = np.full(1, asked_to_stop(), np.int32)
        waiting.append(
            largest(jax.make_array_from_callback((mesh.size,), spread, lambda _: mine))
        )
        return int(waiting.pop(0)) if len(waiting) > 1 else 0

    return ask


def each(step: Callable[[int], Any], total: int) -> Iterable[Any]:
    """step(0), ..., step(total - 1) in order; each process computes its share.

    `step` gives a pytree of arrays of the same shapes for every number. With several
    processes the results are numpy arrays, gathered at the end.
    """
    if not many() or not total:
        return map(step, range(total))
    count = jax.process_count()
    rounds = -(-total // count)
    mine = [
        step(min(n * count + jax.process_index(), total - 1)) for n in range(rounds)
    ]
    stacked = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(mine))
    found = jax.tree.map(np.asarray, multihost_utils.process_allgather(stacked))
    return [
        jax.tree.map(lambda x: x[n % count, n // count], found)  # noqa: B023
        for n in range(total)
    ]
