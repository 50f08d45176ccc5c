"""Scores against true reactions, where those are known without asking."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from jaxrec import reactions
from jaxrec.envs import users
from jaxrec.types import Dataset, Method

# Nothing but the appeal of an item decides; nobody leaves.
SIMPLE = dict(num_items=30, num_categories=3, affinity=0.0, boredom=0.0)
SIMPLE |= dict(item_boredom=0.0, buy_intent=0.0, leave_bias=-100.0, bias=-1.0)
KNOWN = np.arange(3, 23)  # of the log, as items 1 to 20


def test_spearman_is_scipys():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 4, 50)).astype(np.float32)
    want = [stats.spearmanr(a, b).statistic for a, b in zip(x, y)]
    np.testing.assert_allclose(reactions.spearman(x, y), want, rtol=1e-5)


def test_an_order_by_appeal_is_known_for_what_it_is():
    appeal = users.catalogue(users.HPARAMS | SIMPLE)["appeal"][KNOWN]
    score = np.full(128, -np.inf, np.float32)
    score[1:21] = appeal
    method = Method(
        None,
        None,
        scores=lambda state, items, length, timestep: jnp.broadcast_to(
            state * score[None], (len(items), 128)
        ),
    )
    info = dict(users=SIMPLE, seq_len=5, item_ids=np.array([0, *KNOWN]))
    config = ConfigDict(dict(eval=dict(users=60, seed=1)))
    evaluate = reactions.evaluator(config, method, Dataset({}, {}, info))
    found = evaluate(jnp.float32(1), None)
    assert found["users/event_spearman"] == pytest.approx(1, abs=1e-5)
    assert found["users/reward_spearman"] == pytest.approx(1, abs=1e-5)
    assert found["users/best_item_leave"] == pytest.approx(0, abs=1e-6)
    # The reward of the most appealing item, or of the next where it was just shown.
    buy = 1 / (1 + np.exp(-users.HPARAMS["buy_bias"]))
    event = 1 / (1 + np.exp(1.0 - np.sort(appeal)[::-1]))
    reward = event * (0.2 * (1 - buy) + buy)
    assert reward[4] < found["users/best_item_reward"] < reward[0]
    least = evaluate(jnp.float32(-1), None)
    assert least["users/event_spearman"] == pytest.approx(-1, abs=1e-5)
    assert least["users/best_item_reward"] < reward[14]
