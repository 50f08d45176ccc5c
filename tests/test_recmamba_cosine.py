"""RecMamba's sampled softmax by cosines over a temperature, against numpy."""

import jax
import numpy as np
from ml_collections import ConfigDict
from toy_packed import ITEMS, L, batch_of, build
from toy_recommenders import jit

from jaxrec.methods import recmamba
from jaxrec.models import encoders


def test_sampled_loss_by_cosines_by_hand():
    """-log(e^{s+/t} / (e^{s+/t} + sum_j e^{s_j/t})) with s = <F/|F|, e/|e|>, of the
    first step from the parameters at the start; scores are the same cosines."""
    changes = dict(loss="sampled", negatives=128, temperature=0.05)
    method = build("users", **changes, **{"encoder.name": "gru"})
    batch = batch_of(0, 2, "users")
    state = jit(method.init)(jax.random.key(0), batch, {})
    found = jit(method.train_step)(state, batch, jax.random.key(1))[1]["loss"]
    config = ConfigDict(recmamba.HPARAMS["encoder"])
    config.update(name="gru", width=8, num_layers=1, dropout=0.0)
    table, own = recmamba.split(state.params)
    rows = recmamba.examples(batch, False)
    y = encoders.make(config, L).apply(own, table[rows.items], rows.length)
    key, _ = jax.random.split(jax.random.key(1))
    drawn = np.asarray(jax.random.randint(key, (128,), 1, ITEMS + 1))
    table, y = np.asarray(table, float), np.asarray(y, float)
    e = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-9)
    total = []
    for row, at in np.argwhere(rows.target > 0):
        target, f = int(rows.target[row, at]), y[row, at] / np.linalg.norm(y[row, at])
        others = drawn[drawn != target]
        up = np.exp(f @ e[target] / 0.05)
        total.append(-np.log(up / (up + np.exp(e[others] @ f / 0.05).sum())))
    np.testing.assert_allclose(found, np.mean(total), rtol=1e-4)
    scores = jit(method.scores)(state, rows.items, rows.length, rows.length)
    last = y[np.arange(2), rows.length - 1]
    last = last / np.linalg.norm(last, axis=1, keepdims=True)
    np.testing.assert_allclose(
        scores[:, 1 : ITEMS + 1], (last @ e.T)[:, 1 : ITEMS + 1] / 0.05, rtol=1e-3
    )
