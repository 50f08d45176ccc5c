"""The bench of the scans at tiny sizes: its numbers, ratios, gates and refusals."""

import json

import numpy as np
import pytest

from jaxrec.bench import scan

TINY = ["--shape=2,24,8,4", "--chunk=8", "--rounds=1"]


def test_numbers_ratios_and_gates(capsys):
    names = "reference,custom_vjp,ssd_chunked"
    found = scan.main([*TINY, f"--impls={names}", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    rows = found["impls"]
    assert list(rows) == names.split(",")
    for numbers in rows.values():
        assert numbers["forward_ms"] > 0 and numbers["ms"] > 0
        for what, field in (("time", "ms"), ("memory", "temporary_mib")):
            for other in scan.REFERENCES:
                if rows[other][field]:
                    want = numbers[field] / rows[other][field]
                    assert numbers[f"{what}/{other}"] == pytest.approx(want, abs=1e-3)
    assert rows["custom_vjp"]["time/custom_vjp"] == 1.0
    assert [(g["of"], g["to"]) for g in found["gates"]] == list(scan.GATES)
    lines = scan.table(rows)
    assert len(lines) == 4 and len(set(map(len, lines))) == 1


def test_a_gate_holds_up_to_its_limit():
    rows = dict(
        custom_vjp={"time/reference": 0.61}, ssd_chunked={"time/custom_vjp": 0.6}
    )
    assert [gate["holds"] for gate in scan.gates(rows)] == [False, True]
    del rows["custom_vjp"]
    assert len(scan.gates(rows)) == 1


def test_the_scans_compute_the_same_sum_and_gradients():
    """What is timed is the scan: all forms of one model agree on what they return."""
    shape = (2, 24, 8, 4)
    for names in (("reference", "custom_vjp"), ("ssd_sequential", "ssd_chunked")):
        given = scan.arguments(names[0], shape)
        want, got = (
            scan.lowered(name, shape, 8)["both"].compile()(*given) for name in names
        )
        np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
        assert len(got[1]) == 5
        for found, expected in zip(got[1], want[1]):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_memory_alone_runs_nothing(capsys):
    found = scan.main([*TINY[:2], "--rounds=0", "--impls=custom_vjp"])
    (numbers,) = found["impls"].values()
    assert "ms" not in numbers and "temporary_mib" in numbers and not found["gates"]
    assert "custom_vjp" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argument, match",
    [
        ("--impls=custom", "custom not in"),
        ("--shape=8,2048,128", "8,2048,128 is not B,L,D,N"),
        ("--shape=8,20,x,4", "is not B,L,D,N"),
        ("--shape=1,8,96,4", "D=96 has no whole heads"),
    ],
)
def test_arguments_that_cannot_be_are_refused(argument, match, capsys):
    with pytest.raises(SystemExit):
        scan.main([argument])
    assert match in capsys.readouterr().err
