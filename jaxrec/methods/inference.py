"""The seam between the learners of teams and what agents infer of the state.

A host (`team_q`, `team_ppo`) plays and learns with an `Inference`: before acting, each
agent `imagine`s the state from what it sees, without gradient; the host keeps what was
imagined in its chunks and feeds it to the `extractor`, which the host's own loss
trains. Who imagines how (a diffusion model, a regressor, an oracle) is not the host's
affair.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array


class Inference(NamedTuple):
    """How agents infer, beside the function `imagine` that changes with training.

    `imagine(key, states, view, hidden)` -> a tree of arrays [E, A, ...]; `states` [E]
    of the games, `view` what is seen in them, `hidden` float[E, A, D] the agents' GRU
    before this observation. Agents may use their own row of `view.observation` and
    `hidden` only; the controls (oracle, placebo) look at `states`.
    `blank(E)`: zeros of that shape.
    `extractor`: a Flax module (imagined, hidden float[..., D]) -> z float[..., dz].
    `opened(step)` -> float[], 0.0 while the gate is closed, during warm-up.
    `resample`: learn on what is imagined anew instead of what was kept.
    """

    blank: Callable[[int], Any]
    extractor: nn.Module | None = None
    opened: Callable[[Array], Any] = lambda step: 1.0
    resample: bool = False

    def imagine_blank(self, key: Array, states: Any, view: Any, hidden: Array) -> Any:
        """Imagines nothing, in the right shape."""
        return self.blank(hidden.shape[0])

    def again(self, imagine: Callable, chunk: Any, view: Any, hidden: Array) -> Any:
        """What a learner feeds the extractor for chunks [T, B]: kept, or resampled.

        hidden: float[T, B, A, D], the network's own after each observation.
        """
        if not self.resample:
            return chunk.seen
        start = jnp.where(chunk.fresh[0][:, None, None], 0.0, chunk.hidden)
        before = jnp.concatenate([start[None], hidden[:-1]])
        before = jnp.where(chunk.fresh[..., None, None], 0.0, before)
        before = jax.lax.stop_gradient(before)
        axes = chunk.fresh.shape
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        found = imagine(*jax.tree.map(flat, (chunk.state, view, before)))
        return jax.tree.map(lambda x: x.reshape(*axes, *x.shape[1:]), found)


NONE = Inference(blank=lambda games: ())
