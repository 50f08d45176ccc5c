"""What the authors' code has, where the defaults say "code" or "paper"."""

import pytest

from configs import prl as prl_config
from configs import sqn as sqn_config
from jaxrec.data import presets
from jaxrec.methods import dqn_ns, prl, sa2c, sac, sarsa, smorl, snqn, sqn, vpq

COMMON = dict(gamma=0.5, weight=1.0, td_scale=0.5, target_dropout=True)
NEGATIVE = dict(negatives=10, negative_reward=0.0, mask_negative_target=False)
SWITCH = dict(switch=15_000, reset_optim=True)
METHODS = {
    sqn: COMMON,
    sarsa: COMMON,
    sac: COMMON | SWITCH,
    snqn: COMMON | NEGATIVE,
    dqn_ns: COMMON | NEGATIVE | dict(negative_reward=-1.0),
    sa2c: COMMON
    | NEGATIVE
    | SWITCH
    | dict(advantage_clip=(0.0, 10.0), importance_clip=(0.1, 10.0), smooth=0.0),
    vpq: COMMON | SWITCH | dict(num_heads=15, penalty=10.0),
    smorl: COMMON | dict(objectives=(1.0, 1.0, 1.0), reward_item="predicted"),
    prl: dict(
        prompt_mu=2.0, prompt_std=0.0, prompt_norm="mean_at_t", loss_weight="none"
    )
    | dict(prompt_dropout=0.3, max_step=50),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.split(".")[-1])
def test_constants_of_the_code(method):
    found = method.HPARAMS
    assert {name: found[name] for name in METHODS[method]} == METHODS[method]
    encoder = found["encoder"]
    assert (encoder["name"], encoder["width"], found["tied"]) == ("gru", 64, False)
    assert (encoder["scale_embedding"] > 0) == (method is smorl)
    assert (found["positions"], found["optim"]["lr"]) == ("last", 0.005)
    assert (found["optim"]["name"], found["optim"]["clip"]) == ("adam", 0.0)


def test_rates_after_the_switch():
    assert sa2c.HPARAMS["optim_after"]["lr"] == 1e-3
    assert sac.HPARAMS["optim_after"]["lr"] == -1.0  # as before


def test_the_paper_preset():
    config = prl_config.get_config()
    config.data.preset = "paper"
    found = presets.settings(config.data, "retailrocket")
    wanted = dict(session_by="user", min_session=3, min_item=3, iterate=False)
    wanted |= dict(split="random_session", valid=0.1, test=0.1, seq_len=10)
    wanted |= dict(score_first_event=True, drop_unseen_items=False, mask_seen=False)
    wanted |= dict(click_reward=0.2, buy_reward=1.0)
    assert {name: found[name] for name in wanted} == wanted
    found = presets.settings(config.data, "yoochoose")
    wanted = dict(session_by="session", min_clicks=3, min_session=0, min_item=0)
    wanted |= dict(sample_sessions=200_000, split="random_session")
    assert {name: found[name] for name in wanted} == wanted
    assert (config.train.batch_size, config.train.eval_every) == (256, 2_000)


def test_the_recommended_preset_is_by_time():
    config = prl_config.get_config()
    found = presets.settings(config.data, "retailrocket")
    wanted = dict(split="temporal_quantile", score_first_event=False)
    wanted |= dict(drop_unseen_items=True, valid=0.1, test=0.1)
    assert {name: found[name] for name in wanted} == wanted


def test_presets_by_the_argument_of_the_config():
    paper, recommended = (
        prl_config.get_config(arg) for arg in ("paper", "recommended")
    )
    assert (paper.data.preset, recommended.data.preset) == ("paper", "recommended")
    assert (paper.select, recommended.select) == ("", "valid/ndcg@10")
    assert paper.train.prl.loss_weight == "none"
    assert recommended.train.prl.loss_weight == "immediate"
    config = sqn_config.get_config("paper")
    assert config.name == "sqn_paper" and config.train.sqn.target_dropout
    assert not sqn_config.get_config("recommended").train.sqn.target_dropout
    assert sqn_config.get_config().train.sqn.target_dropout
    with pytest.raises(ValueError, match="'papr' is unknown: use one of smoke, paper"):
        sqn_config.get_config("papr")
