"""Traces: which updates, once, and closed whatever happens."""

import jax
import pytest

from jaxrec import defaults, experiment, hosts, profiling
from jaxrec.methods import bc


@pytest.fixture
def calls(monkeypatch):
    """What is asked of JAX's profiler, in order."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: found.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


@pytest.mark.parametrize("steps, last", [(1, 20), (10, 20), (15, 30)])
def test_whole_calls_after_the_first(calls, tmp_path, steps, last):
    """Calls of ten updates: the trace begins at 10 and ends when it has enough."""
    ended = []
    with profiling.tracer(steps, tmp_path) as tell:
        for step in range(0, 50, 10):
            tell(step, None)
            if calls.count("stop") and not ended:
                ended.append(step)
    assert calls == [str(tmp_path), "stop"] and ended == [last]


def test_it_is_closed_and_never_opened_in_vain(calls, tmp_path, capsys):
    with pytest.raises(ValueError), profiling.tracer(100, tmp_path) as tell:
        tell(30, None)
        tell(40, None)
        raise ValueError
    assert calls == [str(tmp_path), "stop"]
    with profiling.tracer(0, tmp_path) as tell:
        for step in range(5):
            tell(step, None)
    with profiling.tracer(5, tmp_path) as tell:
        tell(0, None)
    assert len(calls) == 2
    assert "no trace: the run ended with its first call" in capsys.readouterr().err


def test_processes_do_not_write_the_same_file(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "many", lambda: True)
    for number in range(2):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        with profiling.tracer(1, tmp_path) as tell:
            for step in range(3):
                tell(step, None)
    assert calls == [str(tmp_path / "0"), "stop", str(tmp_path / "1"), "stop"]
    assert capsys.readouterr().err.count(f"on: {tmp_path}\n") == 2  # the whole of it


@pytest.mark.slow
def test_a_run_is_traced_and_ends_as_without(tmp_path):
    config = defaults.offline_rl("bc", bc.HPARAMS, "smoke")
    config.data.update(source="toy", rows=1_000, data_dir=str(tmp_path / "data"))
    config.train.update(steps=40, log_every=10, steps_per_call=10, evals=())
    config.profile.steps = 10
    traced = experiment.run(config, tmp_path / "traced")["stages"]["train"]["last"]
    assert list((tmp_path / "traced/train/profile").rglob("*.xplane.pb"))
    config.profile.steps = 0
    again = experiment.run(config, tmp_path / "traced")["stages"]["train"]["last"]
    plain = experiment.run(config, tmp_path / "plain")["stages"]["train"]["last"]
    assert traced == again and traced["train/loss"] == plain["train/loss"]
