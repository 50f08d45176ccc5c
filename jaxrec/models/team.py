"""The network that the agents of a team share: a recurrent trunk and a head.

PyMARL's: Dense, ReLU, GRU of 64, Dense. The trunk reads observations alone; what an
agent infers of the state comes in behind it, at the head (late fusion, ours): so the
hidden state does not depend on how the inference drew its noise, and a head without
inference is the same function of the same parameters.

    head(h, z) = h W + b + g z V,   g = sigmoid(h w_g + b_g), or 0 while it is closed

With z = 0 or the gate closed the last term is zero exactly. b_g starts at -2: the gate
is open by 0.119 (ours).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array

GATE_BIAS = -2.0


class Network(nn.Module):
    """Call its methods through `apply(params, ..., method="unroll")`.

    `extractor`: a module (imagined, query float[..., D]) -> z float[..., dz], or None.
    """

    size: int  # of the head: a number for each action, or 1 for a value
    width: int = 64
    extractor: nn.Module | None = None
    head_scale: float = 1.0  # of the head's first weights; official MAPPO: 0.01

    def setup(self) -> None:
        self.encoder = nn.Dense(self.width)
        self.of_input = nn.Dense(3 * self.width)
        self.of_hidden = nn.Dense(3 * self.width)
        head_init = nn.initializers.variance_scaling(
            self.head_scale**2, "fan_in", "truncated_normal"
        )
        self.out = nn.Dense(self.size, kernel_init=head_init)
        if self.extractor is not None:
            self.gate = nn.Dense(1, bias_init=nn.initializers.constant(GATE_BIAS))
            self.of_inferred = nn.Dense(self.size, use_bias=False)

    def __call__(self, hidden: Array, observation: Array, imagined: Any = None):
        """For `init`: touches every parameter."""
        hidden = self.step(hidden, observation)
        return self.head(hidden, imagined)

    def inputs(self, observation: Array) -> Array:
        """float[..., od] -> float[..., 3 D], all that does not need the past."""
        return self.of_input(nn.relu(self.encoder(observation)))

    def recur(self, hidden: Array, inputs: Array) -> Array:
        """A gated recurrent unit, its reset behind the product as in PyTorch."""
        x_r, x_u, x_n = jnp.split(inputs, 3, axis=-1)
        h_r, h_u, h_n = jnp.split(self.of_hidden(hidden), 3, axis=-1)
        r, u = nn.sigmoid(x_r + h_r), nn.sigmoid(x_u + h_u)
        n = jnp.tanh(x_n + r * h_n)
        return (1.0 - u) * n + u * hidden

    def step(self, hidden: Array, observation: Array) -> Array:
        """float[..., D], float[..., od] -> the next hidden state float[..., D]."""
        return self.recur(hidden, self.inputs(observation))

    def unroll(self, hidden: Array, observation: Array, fresh: Array) -> Array:
        """hidden float[B, A, D], observation float[T, B, A, od] -> float[T, B, A, D].

        fresh: bool[T, B], where an episode begins: the past is forgotten before it.
        """
        inputs = self.inputs(observation)

        def one(module: nn.Module, h: Array, now: tuple[Array, Array]) -> Any:
            x, new = now
            h = jnp.where(new[:, None, None], 0.0, h)
            h = module.recur(h, x)
            return h, h

        scan = nn.scan(one, variable_broadcast="params", split_rngs={"params": False})
        return scan(self, hidden, (inputs, fresh))[1]

    def head(self, hidden: Array, imagined: Any = None, opened: Any = 1.0) -> Array:
        """float[..., D] -> float[..., size].

        `imagined`: what the extractor reads; `opened`: float[], 0 closes the gate.
        """
        out = self.out(hidden)
        if self.extractor is None:
            return out
        z = self.extractor(imagined, hidden)
        return out + self.of_inferred(opened * nn.sigmoid(self.gate(hidden)) * z)


def masked(values: Array, legal: Array) -> Array:
    """Values of actions, with what is not allowed far below all others."""
    return jnp.where(legal, values, -1e9)
