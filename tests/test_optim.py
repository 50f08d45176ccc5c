"""Weight decay: what it leaves alone, and that the rest is optax's AdamW."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxrec import optim
from jaxrec.models import encoders


def config(**changes):
    return SimpleNamespace(**optim.spec("adamw", lr=0.1, weight_decay=0.5) | changes)


def test_mamba_decays_steps_and_skip_are_exempt():
    """With gradients of zero decay alone moves a parameter: by lr times 0.5 of it."""
    spec = ConfigDict(encoders.SPEC | dict(name="mamba2", width=16, head_dim=16))
    encoder = encoders.make(spec, 8)
    shapes = jax.eval_shape(
        encoder.init, jax.random.key(0), jnp.zeros((1, 2, 16)), jnp.ones(1, int)
    )
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    optimiser = optim.make(config(), 10)
    grads = jax.tree.map(jnp.zeros_like, params)
    after, _ = optim.descend(optimiser, grads, optimiser.init(params), params)
    kept = {name for name, x in after["params"].items() if np.all(x == 1.0)}
    assert kept == {"A_log_0", "dt_bias_0", "skip_0"}
    for name in set(after["params"]) - kept:
        np.testing.assert_allclose(after["params"][name], 0.95, rtol=1e-6)


def test_the_rest_is_adamw_and_its_state():
    params = dict(kernel=jnp.array([1.0, -2.0]), skipped=jnp.array([3.0]))
    ours, theirs = optim.make(config(clip=1.0), 10), optax.adamw(0.1, weight_decay=0.5)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), theirs)
    grads = dict(kernel=jnp.array([0.3, 5.0]), skipped=jnp.array([-1.0]))
    states = [tx.init(params) for tx in (ours, theirs)]
    found, want = (
        optim.descend(tx, grads, state, params)
        for tx, state in zip((ours, theirs), states)
    )
    chex.assert_trees_all_close(found, want)
    assert jax.tree.structure(found[1]) == jax.tree.structure(want[1])
