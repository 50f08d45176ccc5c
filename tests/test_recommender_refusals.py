"""What recommenders cannot work with is refused in one line, before training."""

import importlib

import jax
import jax.numpy as jnp
import pytest
import toy_recommenders as toy
import toy_sessions
from toy_recommenders import batch_of, data, make, start

from jaxrec.methods import ce, dqn_ns, lea, prl, recommender, sa2c, smorl, snqn, sqn
from jaxrec.types import TrainState, UserError


def one_line(match, call, *args, **changes):
    with pytest.raises(UserError, match=match) as error:
        call(*args, **changes)
    assert "\n" not in str(error.value)


def test_what_cannot_work_is_refused():
    build, lone = toy.build, data().info | dict(num_items=1)
    one_line("no sessions of items", build, sqn, info=dict(name="toy/linear"))
    one_line("positions 'every' is unknown", build, ce, positions="every")
    one_line(
        "tied=True: states of encoder caser have 64",
        build,
        ce,
        tied=True,
        encoder=dict(name="caser", heights=(2, 3, 4)),
    )
    one_line("rank_by='p' is unknown", build, sqn, rank_by="p")
    for module in (snqn, sa2c, dqn_ns):
        one_line("negatives=-1: this needs", build, module, negatives=-1)
        one_line("have no item beside", build, module, info=lone)
    one_line("negatives=0: this needs 1", build, sa2c, negatives=0)
    build(snqn, info=lone, negatives=0)
    build(dqn_ns, negatives=0)
    one_line("negatives=0", build, ce, softmax="sampled", negatives=0)
    one_line("have no item beside", build, ce, softmax="sampled", info=lone)


def test_teachers_and_tables_that_are_not_there_are_refused():
    build = toy.build
    many = toy.info_with_teacher(ce, "ce")
    one_line("proposals=20: must be 1 to 19", build, lea, info=many, proposals=20)
    build(lea, info=many, proposals=19)
    one_line("teacher_stage='teacher': name an earlier", build, lea)
    for module, name in ((dqn_ns, "dqn_ns"), (prl, "prl")):
        info = toy.info_with_teacher(module, name)
        one_line(f"{name} trains no softmax head on states", build, lea, info=info)
    build(lea, info=toy.info_with_teacher(prl, "prl", prompt="off"))
    counted = TrainState(jnp.int32(0), {}, None)
    for method, stage in ((make(smorl), "embed"), (build(lea, info=many), "teacher")):
        init = lambda **earlier: method.init(jax.random.key(0), batch_of(), earlier)  # noqa
        one_line(f"stage '{stage}' is not among the earlier ones", init)
        one_line(f"stage '{stage}' trains no item table", init, **{stage: counted})


def test_parameters_of_earlier_stages_are_found_wherever_they_lie():
    for method in (make(ce), make(prl), make(dqn_ns)):
        found = recommender.network_params("one", dict(one=start(method)))
        assert found["item_table"]["embedding"].shape == (toy_sessions.VOCAB, 16)


def test_configs_reach_the_second_phase_and_need_no_idle_teacher():
    def config(name, arg):
        return importlib.import_module(f"configs.{name}").get_config(arg)

    for name in ("sac", "sa2c", "vpq"):
        short = config(name, "smoke").train
        assert short[name].switch < short.steps
        assert config(name, "").train[name].switch == 15_000
    own = config("lea", "vectors")
    assert own.stages == ("train",) and own.train.uses == ()
    assert config("lea", "smoke").stages == ("teacher", "train")
