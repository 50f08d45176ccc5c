"""Compiled memory and communication: the count, the line, and what it is checked by."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec import sharding, train
from jaxrec.bench import collectives, scaling, scaling_cases
from jaxrec.errors import UserError


def text_of(body):
    mesh, spec = sharding.make_mesh(8, 1), PartitionSpec("data")
    run = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(run).lower(x).compile().as_text()


def test_collectives_count_by_the_rounds_of_their_loop():
    def body(x):
        def known(_, x):
            return jnp.tanh(jax.lax.psum(x, "data"))

        def unknown(x):
            return jnp.tanh(jax.lax.all_gather(x, "data").sum(0))

        x = jax.lax.fori_loop(0, 5, known, x)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, unknown, x)

    found = text_of(body)
    assert collectives.traffic(found) == {"all-reduce": 5 * 64, "all-gather": 8 * 64}
    half = collectives.traffic(found, share=0.5)
    assert half == {"all-reduce": 5 * 64, "all-gather": 4 * 64}


def test_forms_of_other_backends_are_read():
    program = """
%more (x: f32[4]) -> f32[4] {
  ROOT %r = bf16[4]{0} all-to-all(%x), replica_groups={{0,1}}
}
%less (x: f32[4]) -> f32[4] {
  ROOT %r = pred[4]{0} all-to-all(%x), replica_groups={{0,1}}
}
ENTRY %main (x: f32[4], /*index=1*/i: s32[]) -> f32[4] {
  %a = (f32[2]{0:T(8)}, f32[8]{0:T(8)}) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %b = f32[8]{0} all-gather-done(%a)
  %c = f32[2,3]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %d = f32[2]{0} reduce-scatter(%x), replica_groups=mesh['a'=4,'b'=2] {'b'}
  ROOT %e = f32[4]{0} conditional(%i, %x, %x), branch_computations={%less, %more}
}
"""
    assert collectives.traffic(program) == {
        "all-gather": 32,
        "reduce-scatter": 4 * 24 + 2 * 8,
        "all-to-all": 8,
    }


def test_the_line_and_what_fits():
    def row(items, size):
        return dict(
            items=items, argument_bytes=size, temporary_bytes=10, output_bytes=1
        )

    line = scaling.fit([row(1_000, 10_989), row(2_000, 20_989), row(4_000, 40_989)])
    assert line["bytes_per_item"] == 10 and line["other_bytes"] == 1_000
    assert line["misfit"] == 0 and line["fits"][16] == (16 * 10**9 - 1_000) // 10
    bent = scaling.fit([row(1_000, 10_989), row(2_000, 24_989), row(4_000, 40_989)])
    assert bent["misfit"] == pytest.approx(4_000 / 25_000)


def test_lines_are_of_catalogues_that_differ():
    """Rows without items have no line, however many there are."""
    sizes = dict(temporary_bytes=10, output_bytes=1, data=8, model=1, time=1)
    rows = [
        dict(method=name, program="update", items=items, argument_bytes=size) | sizes
        for name, items, size in (
            *(("td3bc", 0, 500), ("td3bc", 0, 500)),
            *(("ce", 1_000, 10_989), ("ce", 2_000, 20_989)),
        )
    ]
    (key,) = found = scaling.fits(rows)
    assert key == ("ce", "update", "8x1") and found[key]["bytes_per_item"] == 10


def test_equal_meshes_are_compiled_once():
    args = scaling.parse(["--meshes=1x8,2x4,1x2x4,1x4,1x4"])[1]
    found = [scaling.named(row) for row in scaling.compiled_rows(["td3bc"], args)]
    assert found == ["8x1", "4x1"]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--methods=cee", "method 'cee' is unknown here: ce"),
        ("--meshes=8", "give data x model"),
        ("--items=lots", "give numbers from 1000"),
        ("--items=1e10", "give numbers from 1000"),
    ],
)
def test_refusals_are_one_line(capsys, flag, message):
    assert scaling.main([flag]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    with pytest.raises(UserError):
        scaling.parse([flag])


@functools.cache
def rows():
    args = scaling.parse(["--meshes=1x8", "--items=1000,60000"])[1]
    return list(scaling.compiled_rows(["ce", "td3bc"], args))


@pytest.mark.slow
def test_small_catalogues_are_compiled():
    ce = [row for row in rows() if row["program"] == "update" and row["items"]]
    low, high = ce
    # Table and head with two moments each, 129 numbers an item, on an eighth of them.
    grown = high["argument_bytes"] - low["argument_bytes"]
    assert grown == pytest.approx(3 * 129 * 4 / 8 * (60_032 - 1_024), rel=0.001)
    assert low["collective_bytes"]["all-reduce"] > 64 * 64 * 4
    # Nothing that is moved grows with the catalogue.
    assert low["collective_bytes"] == high["collective_bytes"]
    ranking = [row for row in rows() if row["program"] == "ranking"]
    assert scaling.fit(ranking)["bytes_per_item"] > 64 * 4 / 8  # scores of 64 rows
    (td3bc,) = (row for row in rows() if row["method"] == "td3bc")
    assert td3bc["data"] == 8 and td3bc["batch_size"] == 8 * 256


@pytest.mark.slow
def test_arguments_are_the_bytes_of_a_real_state():
    stage = scaling_cases.stage_of(scaling_cases.CASES["ce"], 60_000, (1, 8, 1))
    state = train.initial_state(stage, {})
    mine = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    (row,) = (r for r in rows() if r["items"] == 60_000 and r["program"] == "update")
    assert sum(mine) <= row["argument_bytes"] < 1.02 * sum(mine)  # and the batch


@pytest.mark.slow
def test_members_draw_rows_where_the_batch_is_split():
    """Four times the devices and the rows: no device has more to do."""
    args = scaling.parse(["--meshes=1x2,1x8"])[1]
    few, many = scaling.compiled_rows(["world_transformer"], args)
    assert many["batch_size"] == 4 * few["batch_size"]
    assert many["temporary_bytes"] < 1.2 * few["temporary_bytes"]


@pytest.mark.slow
def test_devices_along_time_share_a_history():
    """No row more for them, and less memory; what cannot split time takes more rows."""
    args = scaling.parse(["--meshes=1x2x1,1x2x4", "--items=1000", "--no-ranking"])[1]
    whole, parts = scaling.compiled_rows(["recmamba"], args)
    assert whole["batch_size"] == parts["batch_size"] == 1 and parts["time"] == 4
    assert parts["temporary_bytes"] < 0.6 * whole["temporary_bytes"]
    few, many = scaling.compiled_rows(["ce"], args)
    assert many["time"] == 1 and many["batch_size"] == 4 * few["batch_size"]


@pytest.mark.slow
def test_games_are_shared_out():
    args = scaling.parse(["--meshes=1x2,1x8"])[1]
    few, many = scaling.compiled_rows(["sidiff"], args)
    assert many["batch_size"] == 4 * few["batch_size"] == 32 * 8
    assert many["temporary_bytes"] < 1.2 * few["temporary_bytes"]
    assert many["collective_bytes"]["all-reduce"] > 0
