"""A finished run measured again: the numbers of its summary, and faults in one line."""

import json

from jaxrec import defaults, evaluate, experiment
from jaxrec.methods import popularity


def finished_run(folder, evals):
    config = defaults.recommender("pop", popularity.HPARAMS, "", steps=1, batch_size=8)
    config.data.update(num_users=60, data_dir=str(folder / "data"))
    config.train.evals, config.num_seeds, config.select = evals, 2, ""
    return experiment.run(config, folder / "run")


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_finished_run_is_measured_again(tmp_path, capsys):
    summary = finished_run(tmp_path, ("sampled_1000",))
    run, out = tmp_path / "run", tmp_path / "found.json"
    before = times(run)
    assert evaluate.main([f"--run={run}", f"--out={out}"]) == 0
    want = summary["stages"]["train"]["last"]
    want = {k: v for k, v in want.items() if not k.startswith("train/")}
    assert len(want) == 12 and json.loads(out.read_text()) == want
    assert "test/sampled_1000/ndcg@10" in capsys.readouterr().out
    assert evaluate.main([f"--run={run}", "--evals=values"]) == 0
    shown = capsys.readouterr()
    assert "nothing was measured" in shown.out and "no values" in shown.err
    assert times(run) == before
    for flags, word in (
        (["--evals=rankings"], "did you mean ranking"),
        (["--stage=policy"], "name one of train"),
        ([f"--out={tmp_path}/none/x.json"], "choose another --out"),
    ):
        assert evaluate.main([f"--run={run}", *flags]) == 2
        shown = capsys.readouterr()
        assert word in shown.err
    (tmp_path / "config.json").write_text('{"lr": 0.1}')
    assert evaluate.main([f"--run={tmp_path}"]) == 2
    assert "is no run's (no stages): give a run's --workdir" in capsys.readouterr().err
    # What was measured is not lost with the file.
    assert "test/sampled_1000/ndcg@10" in shown.out
