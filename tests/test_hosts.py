"""Who the processes of a run are, and which rows each reads."""

import jax
import numpy as np
import pytest

from jaxrec import hosts, sharding
from jaxrec.data import cache, loader
from jaxrec.errors import PeerLost
from jaxrec.types import Dataset, Mix, UserError

ADDRESS = dict(
    JAX_COORDINATOR_ADDRESS="node1:1234", JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="3"
)
SLURM = dict(SLURM_JOB_ID="7", SLURM_PROCID="1", SLURM_NTASKS="2")


@pytest.mark.parametrize(
    "environ, flags, expected",
    [
        ({}, {}, None),
        (ADDRESS, {}, ("node1:1234", 4, 3)),
        (ADDRESS, dict(process_id=0), ("node1:1234", 4, 0)),
        (ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, {}, None),
        (ADDRESS, dict(detect=False), None),
        # A batch script's own shell has SLURM_NTASKS too, but is no step of two tasks.
        (SLURM, {}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, {}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, {}, ()),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, dict(detect=False), None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, ()),
        ({}, dict(detect=True), ()),
    ],
)
def test_who_takes_part(environ, flags, expected):
    found = hosts.plan(environ, **flags)
    if expected is None or expected == ():
        assert found == (None if expected is None else {})
    else:
        assert tuple(found.values())[:3] == expected


@pytest.mark.parametrize(
    "environ, flags, message",
    [
        ({"JAX_NUM_PROCESSES": "2"}, {}, "give both --num_processes and --process_id"),
        (ADDRESS | {"JAX_PROCESS_ID": "4"}, {}, "process id 4: ids of 4 processes"),
        (ADDRESS, dict(coordinator="node1"), "'node1': give the address .* HOST:PORT"),
        ({}, dict(coordinator="node1:1"), "--coordinator needs --num_processes"),
        ({}, dict(process_id=1, detect=False), "--nodistributed takes no"),
    ],
)
def test_half_an_address_is_refused(environ, flags, message):
    with pytest.raises(UserError, match=message):
        hosts.plan(environ, **flags)


def test_shares_of_a_batch_make_up_the_batch():
    """Rows of the data and of a mix, windows, seeds; in any cut."""
    rows = np.arange(50)
    arrays = dict(x=rows, timestep=rows % 10)
    blend = Mix(dict(x=1000 + rows, timestep=rows % 10), 0.3)
    dataset = Dataset(arrays, {}, {}, window=2, mix=(blend,))
    for seeds in (np.uint32(3), np.arange(2, dtype=np.uint32)):
        whole = loader.host_batch(dataset, 8, seeds, 5)
        axis = seeds.ndim
        for cuts in ([3], [4], [6], [1, 7]):
            shares = [
                loader.host_batch(dataset, 8, seeds, 5, only)
                for only in np.split(np.arange(8), cuts)
            ]
            for name, column in whole.items():
                joined = np.concatenate([share[name] for share in shares], axis)
                np.testing.assert_array_equal(joined, column)


def test_the_mesh_has_to_divide_the_batch():
    mesh = sharding.make_mesh(4, 2)
    assert sharding.own_rows(mesh, 8) is None  # one process reads all rows
    with pytest.raises(UserError, match="batch_size is 10, not divisible by mesh.data"):
        sharding.own_rows(mesh, 10)


def test_different_data_have_different_fingerprints():
    table = dict(x=np.arange(1000.0), y=np.zeros((1000, 2), np.int32))
    same = cache.fingerprint([table, table])
    assert same == cache.fingerprint([dict(reversed(table.items())), table])
    shorter = {name: array[:-1] for name, array in table.items()}
    for other in ([table], [table, shorter], [table, table | {"x": -table["x"]}]):
        assert cache.fingerprint(other) != same


LOSSES = [
    jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer"),
    jax.errors.JaxRuntimeError("UNAVAILABLE: the following tasks are unhealthy"),
    TimeoutError("Timed out while waiting for async_commit_complete barrier."),
]


@pytest.mark.parametrize("cause", LOSSES, ids=range(len(LOSSES)))
def test_a_lost_peer_is_recognised_behind_other_errors(monkeypatch, cause):
    """And what the first error said is told."""
    monkeypatch.setattr(hosts, "many", lambda: True)
    with pytest.raises(PeerLost) as found, hosts.membership():
        try:
            raise cause
        except Exception as error:
            raise UserError("checkpoint 5 cannot be read") from error
    assert f"({type(cause).__name__}: {cause})" in str(found.value)


BUGS = [
    UserError("no peer in sight"),
    KeyError("loss"),
    KeyError("coordination"),
    ValueError("agent 3 has no peer"),
    RuntimeError("heartbeat of the simulator"),
    ConnectionResetError(104, "Connection reset by peer"),  # of a download
    TimeoutError(110, "Connection timed out"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    jax.errors.JaxRuntimeError("INTERNAL: callback: Traceback: KeyError: 'peer'"),
]


@pytest.mark.parametrize("bug", BUGS, ids=range(len(BUGS)))
def test_words_of_lost_peers_in_other_errors_mean_nothing(monkeypatch, bug):
    """They keep their traceback, and the run is not started again for them."""
    monkeypatch.setattr(hosts, "many", lambda: True)
    with pytest.raises(type(bug)) as found, hosts.membership():
        raise bug
    assert found.value is bug


def test_one_process_is_asked_and_told_nothing():
    mesh, looks = sharding.make_mesh(1, 1), lambda: 15
    assert hosts.agreed(looks, mesh) is looks
    assert hosts.lead(lambda: {1: object}) == {1: object}
    assert list(hosts.each(lambda number: number, 3)) == [0, 1, 2]
    tree = {"x": jax.numpy.ones(3)}
    assert sharding.local(mesh, tree) is tree
