"""The bench of long encoders at tiny sizes: its table, ratios, counter and picture."""

import argparse
import json

import jax
import pytest

from jaxrec.bench import sequence

TINY = ["--lengths=32,64", "--batch_size=2", "--width=16", "--state=4", "--rounds=1"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "cost.png"
    arguments = [*TINY, "--encoders=sasrec,linrec,mamba2", f"--plot={path}"]
    return sequence.main(arguments), path


@pytest.mark.slow
def test_every_rival_has_its_numbers_and_ratios(result):
    found, path = result
    assert path.read_bytes().startswith(b"\x89PNG")
    for length, rows in found["lengths"].items():
        assert list(rows) == ["sasrec", "linrec", "mamba2"]
        for numbers in rows.values():
            assert numbers["temporary_mib"] > 0 and numbers["gflop"] >= 0
            tokens = 2 * int(length) * 1e3 / numbers["ms"]
            assert numbers["tokens_per_second"] == pytest.approx(tokens, rel=0.3)
            want = numbers["temporary_mib"] / rows["sasrec"]["temporary_mib"]
            assert numbers["memory/sasrec"] == pytest.approx(want, abs=1e-3)
            assert "memory/sasrec_blockwise" not in numbers
        assert rows["sasrec"]["time/sasrec"] == 1.0
        lines = sequence.table(int(length), rows)
        assert len(lines) == 4 and len(set(map(len, lines))) == 1


def test_what_is_too_large_is_compiled_and_not_run(capsys):
    arguments = [*TINY[1:], "--lengths=64", "--encoders=sasrec", "--memory_limit=0"]
    found = sequence.main([*arguments, "--json"])
    (numbers,) = found["lengths"]["64"].values()
    assert numbers["temporary_mib"] > 0 and "ms" not in numbers
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    with pytest.raises(SystemExit):
        sequence.main(["--encoders=sasrek"])


@pytest.mark.parametrize("rival", ["sasrec", "hstu"])
def test_the_counter_agrees_with_that_of_the_compiler_where_nothing_loops(
    rival, monkeypatch
):
    monkeypatch.setitem(sequence.RIVALS["hstu"], "attention", "full")
    args = argparse.Namespace(batch_size=2, width=32, layers=1, state=4)
    encoder, _ = sequence.build(rival, 128, args)
    x = jax.ShapeDtypeStruct((2, 128, 32), "float32")
    length = jax.numpy.full(2, 128)
    params = jax.eval_shape(encoder.init, jax.random.key(0), x, length)
    compiled = jax.jit(encoder.apply).lower(params, x, length).compile()
    counted = compiled.cost_analysis()["flops"]
    # The compiler also counts norms, softmax and SiLU.
    assert 0.6 * counted < sequence.flops(rival, 128, args) / 3 < counted


def test_linear_encoders_grow_linearly_by_the_counter():
    args = argparse.Namespace(batch_size=2, width=32, layers=1, state=4)
    for rival in sequence.RIVALS:
        growth = sequence.flops(rival, 8_192, args) / sequence.flops(rival, 2_048, args)
        quadratic = rival in ("sasrec", "sasrec_blockwise", "hstu")
        assert growth > 10 if quadratic else growth == pytest.approx(4.0)
