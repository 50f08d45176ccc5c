"""Exports of recommenders: they answer as the run does, without its code and data."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import test_ladder as ladder
import toy_recommenders as toy
from test_recommend import ids, model, policy, refusal, without

from jaxrec import export, exported, finished, recommend, recommender, train
from jaxrec.methods import METHODS
from jaxrec.types import UserError


def test_an_export_answers_as_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finished, "policy", lambda *args, **kwargs: policy())
    out = tmp_path / "out"
    assert export.main(["--run=r", f"--out={out}"]) == 0
    assert "int32" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    facts = json.loads((out / "export.json").read_text())
    assert facts["difference"] == 0 and facts["parameters"] == toy.toy_sessions.VOCAB
    assert facts["arguments"]["items"] == ["int32", "B", "5"]
    monkeypatch.setattr(finished, "policy", None)  # neither run nor data are needed
    one, other = model(), recommend.load(out)
    histories = [[], [10], [30, 70, 20], [50] * 30]
    assert recommend.top(other, histories, 4) == recommend.top(one, histories, 4)
    assert recommend.recommend(out, [30], 1)[0].title == "item 3"
    with pytest.raises(UserError, match="is there already"):
        export.write("r", out)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export's folder, to be copied and damaged."""
    out = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finished, "policy", lambda *args, **kwargs: policy())
        export.write("r", out)
    return out


def every(change):
    return lambda found: {k: change(v) for k, v in found.items()}


SIZE = toy.toy_sessions.VOCAB
DAMAGES = [
    ("items.json", lambda found: {}, "is damaged (KeyError: 'item_ids')"),
    ("items.json", lambda found: found | dict(vocab=None), "is damaged (TypeError"),
    ("export.json", without("kind"), "is damaged (no kind)"),
    ("export.json", lambda found: found | dict(version=0), "has layout 0"),
    ("export.json", lambda found: found | dict(platforms=["tpu"]), "is for tpu"),
    ("weights.npz", lambda found: {}, f"the program takes float32[{SIZE}]"),
    ("weights.npz", lambda found: found | dict(z=np.zeros(2)), "has float64[2] for z"),
    ("weights.npz", every(lambda x: x[1:]), f"has float32[{SIZE - 1}] for"),
    ("weights.npz", every(np.float64), f"has float64[{SIZE}] for"),
    ("weights.npz", None, "weights.npz is damaged"),
    ("program.bin", None, "program.bin is damaged"),
]


@pytest.mark.parametrize("name, change, words", DAMAGES)
def test_damaged_exports_are_told_in_one_line(
    made, tmp_path, capsys, name, change, words
):
    out = shutil.copytree(made, tmp_path / "out")
    file = out / name
    if change is None:
        file.write_bytes(file.read_bytes()[:100])
    elif name.endswith(".json"):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        np.savez(file, **change(dict(np.load(file))))
    line = refusal(capsys, f"--run={out}")
    assert words in line and str(out) in line and "export the run again" in line


def test_an_export_is_of_one_stage_and_seed(made, capsys):
    for flag in ("--stage=nonsense", "--seed_number=77"):
        line = refusal(capsys, f"--run={made}", flag)
        assert "is an export, of one stage and one seed: leave out" in line


@pytest.mark.parametrize(
    "backend, version, expected",
    [
        ("cpu", "cpu", "cpu"),
        ("tpu", "PJRT C API\nTFRT TPU v5 lite", "tpu"),
        ("gpu", "PJRT C API\ncuda 12080", "cuda"),
        ("gpu", "PJRT C API\nrocm 60300", "rocm"),
    ],
)
def test_gpus_are_told_apart(monkeypatch, backend, version, expected):
    device = SimpleNamespace(client=SimpleNamespace(platform_version=version))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert exported.platform() == expected


def test_an_export_for_other_devices_is_not_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finished, "policy", lambda *args, **kwargs: policy())
    assert export.main(["--run=r", f"--out={tmp_path}/out", "--platforms=cuda"]) == 0
    assert "not compared: no cuda device here" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/export.json").read_text())["difference"] is None


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "policy", lambda *args, **kwargs: policy())
    true = exported.read

    def other(folder):
        call, weights, facts = true(folder)
        return call, {k: v + 1 for k, v in weights.items()}, facts

    monkeypatch.setattr(exported, "read", other)
    monkeypatch.setattr(export, "TOLERANCE", 1e-9)
    with pytest.raises(UserError, match="differs from the run"):
        export.write("r", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="platform 'abacus' is unknown"):
        export.write("r", tmp_path / "out", platforms=["abacus"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS)[list(METHODS).index("ce") :])
def test_every_recommender_is_exported(tmp_path, monkeypatch, name):
    """Any size of the batch, and no weight that scores do not read."""
    stage, earlier = ladder.build(name)
    if stage.method.scores is None:
        pytest.skip("ranks no items")
    state = jax.tree.map(finished._local, train.initial_state(stage, earlier))
    found = finished.Policy(stage.method, state, stage.dataset.info, "train")
    monkeypatch.setattr(finished, "policy", lambda *args, **kwargs: found)
    facts = export.write("r", tmp_path / "out")
    assert facts["difference"] <= export.TOLERANCE
    with np.load(tmp_path / "out" / "weights.npz") as file:
        assert not any(path.startswith("opt_state") for path in file.files)
    one = recommender.make(stage.method.scores, state, stage.dataset.info)
    histories = [[], one.ids[1:3], one.ids[1:30]]
    want, other = (
        recommend.top(m, histories, 3) for m in (one, recommend.load(tmp_path / "out"))
    )
    assert [ids(found) for found in other] == [ids(found) for found in want]
