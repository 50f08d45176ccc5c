"""The bench of team environments: it plays, and refuses what it cannot."""

import json

import pytest

from jaxrec.bench import marl


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--forms=foo", "form 'foo' is unknown: use tick"),
        ("--scenarios=foo", "no scenario 'foo'"),
        ("--envs=0", "--envs=0: at least 1"),
    ],
)
def test_refusals_are_one_line(capsys, flag, message):
    assert marl.main([flag]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.slow
def test_all_forms_play(capsys):
    assert marl.main(["--json", "--envs=4", "--steps=3", "--rounds=2"]) == 0
    found = json.loads(capsys.readouterr().out)["2t_vs_4e_open7"]
    assert all(found[form]["steps_per_cpu_second"] > 0 for form in marl.FORMS)
