"""Networks for continuous control: critics, actors, and a VAE of the actions.

All are multilayer perceptrons with ReLU. `init_scheme` chooses the weights: "torch" is
U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases, the default of the PyTorch
reference implementations (TD3+BC, CQL, MCQ); "orthogonal" is gain sqrt(2) and zero
biases, that of the official IQL.

Speed on a CPU (batch 256, 2 x 256; see `bench.offline_rl`): the update of a method is
within a fifth of its bare matrix products. Stacked critics cost what separate modules
do and are one kernel on an accelerator. `concatenate([s, a])` costs 1 % of an update.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxrec.types import Array

LIMIT = 1 - 1e-5  # actions are clipped to +-LIMIT before any atanh or log-density


def _torch_uniform(fan_in: int) -> Any:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def _orthogonal(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """sqrt(2) times a random matrix with orthonormal rows or columns.

    The polar factor of a Gaussian matrix, by Newton-Schulz iteration; it has the same
    (Haar) distribution as the usual QR. Not QR: two batched QRs at once, as stacked
    critics need, deadlock in jaxlib 0.10's LAPACK kernels on two cores now and then.
    """
    x = jax.random.normal(key, shape, dtype)
    x = x if shape[0] <= shape[1] else x.T  # the smaller Gram matrix
    x = x / jnp.linalg.norm(x)
    # Singular values below 1 grow by half an iteration, then snap to 1.
    x = jax.lax.fori_loop(0, 50, lambda _, x: 1.5 * x - 0.5 * (x @ x.T) @ x, x)
    return math.sqrt(2) * (x if shape[0] <= shape[1] else x.T)


def _initialisers(scheme: str, fan_in: int) -> tuple[Any, Any]:
    if scheme == "orthogonal":
        return _orthogonal, nn.initializers.zeros
    if scheme == "torch":
        return _torch_uniform(fan_in), _torch_uniform(fan_in)
    raise ValueError(f"init_scheme {scheme!r} is unknown: use torch or orthogonal")


class MLP(nn.Module):
    """float[..., n] -> float[..., size], ReLU between layers, none after the last."""

    widths: tuple[int, ...]
    size: int
    init_scheme: str = "torch"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            kernel_init, bias_init = _initialisers(self.init_scheme, x.shape[-1])
            layer = nn.Dense(width, kernel_init=kernel_init, bias_init=bias_init)
            x = nn.relu(layer(x))
        # The last kernel is stored [out, in]: the gradient of an [in, out] one with few
        # outputs takes XLA:CPU 68 us where this takes 4 (256 x 6, batch 256).
        kernel_init, bias_init = _initialisers(self.init_scheme, x.shape[-1])
        kernel = self.param("kernel", kernel_init, (self.size, x.shape[-1]))
        bias = self.param("bias", bias_init, (self.size,))
        out = jnp.einsum("...i,oi->...o", x, kernel)
        return out + bias.reshape((1,) * (out.ndim - 1) + bias.shape)


class Value(nn.Module):
    """V(s): float[..., od] -> float[...]."""

    widths: tuple[int, ...]
    init_scheme: str = "torch"

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        return MLP(self.widths, 1, self.init_scheme)(observation)[..., 0]


class Critic(nn.Module):
    """Q(s, a): float[..., od], float[..., ad] -> float[...]."""

    widths: tuple[int, ...]
    init_scheme: str = "torch"

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        x = jnp.concatenate([observation, action], axis=-1)
        return MLP(self.widths, 1, self.init_scheme)(x)[..., 0]


class Critics(nn.Module):
    """`num` independent critics: float[..., od], float[..., ad] -> float[num, ...].

    Parameters are stacked on axis 0; `first` picks the first critic's.
    """

    widths: tuple[int, ...]
    num: int = 2
    init_scheme: str = "torch"

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        ensemble = nn.vmap(
            Critic,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            axis_size=self.num,
        )
        # Copies of the input keep the product batched: with in_axes=None XLA merges the
        # critics' kernels into one and transposes what comes out (3 % of an update).
        observation, action = (
            jnp.broadcast_to(x[None], (self.num, *x.shape))
            for x in (observation, action)
        )
        return ensemble(self.widths, self.init_scheme, name="ensemble")(
            observation, action
        )


class DeterministicActor(nn.Module):
    """tanh(f(s)): float[..., od] -> float[..., ad] in (-1, 1)."""

    widths: tuple[int, ...]
    size: int
    init_scheme: str = "torch"

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        return jnp.tanh(MLP(self.widths, self.size, self.init_scheme)(observation))


class GaussianActor(nn.Module):
    """Mean tanh(f(s)) and a log-std free of the state: float[..., ad] each.

    Not squashed: actions are drawn in R^ad around a mean in (-1, 1), as in the
    official IQL (log-std starts at 0, clipped to [-5, 2]).
    """

    widths: tuple[int, ...]
    size: int
    init_scheme: str = "orthogonal"

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array]:
        mean = jnp.tanh(MLP(self.widths, self.size, self.init_scheme)(observation))
        log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
        return mean, jnp.broadcast_to(jnp.clip(log_std, -5.0, 2.0), mean.shape)


class TanhGaussianActor(nn.Module):
    """Mean and log-std of u, where a = tanh(u): float[..., ad] each.

    The log-std depends on the state and is clipped to [-5, 2], as in OfflineRL-Kit.
    """

    widths: tuple[int, ...]
    size: int
    init_scheme: str = "torch"

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array]:
        out = MLP(self.widths, 2 * self.size, self.init_scheme)(observation)
        mean, log_std = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class ActionVAE(nn.Module):
    """Conditional VAE of the behaviour policy, as in BCQ and MCQ.

    Latent of size 2 |A|; log-std of the encoder clipped to [-4, 15] (official MCQ).
    """

    width: int
    size: int

    def setup(self) -> None:
        self.encoder = MLP((self.width, self.width), 4 * self.size)
        self.decoder = MLP((self.width, self.width), self.size)

    def __call__(
        self, observation: Array, action: Array, noise: Array
    ) -> tuple[Array, Array, Array]:
        """-> reconstruction [..., ad], latent mean and log-std [..., 2 ad]."""
        out = self.encoder(jnp.concatenate([observation, action], axis=-1))
        mean, log_std = jnp.split(out, 2, axis=-1)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        return self.decode(observation, mean + jnp.exp(log_std) * noise), mean, log_std

    def decode(self, observation: Array, latent: Array) -> Array:
        """float[..., od], float[..., 2 ad] -> action float[..., ad] in (-1, 1)."""
        return jnp.tanh(self.decoder(jnp.concatenate([observation, latent], axis=-1)))


def first(params: Any) -> Any:
    """The parameters of the first of stacked `Critics`, for `Critic.apply`."""
    stacked = params["params"]["ensemble"]
    return {"params": jax.tree.map(lambda leaf: leaf[0], stacked)}


@struct.dataclass
class Standardiser:
    """Statistics of the observations, kept in the state so that `act` needs no data."""

    mean: Array  # float32[od]
    scale: Array  # float32[od]

    def __call__(self, observation: Array) -> Array:
        """float[..., od] -> float[..., od], zero mean and unit deviation."""
        shape = (1,) * (observation.ndim - 1) + self.mean.shape
        return (observation - self.mean.reshape(shape)) / self.scale.reshape(shape)


def standardiser(info: dict[str, Any], use: bool) -> Standardiser:
    """(s - mean) / (std + 1e-3) as in the official TD3+BC, or the identity."""
    mean = jnp.asarray(info["observation_mean"], jnp.float32)
    std = jnp.asarray(info["observation_std"], jnp.float32)
    if not use:
        return Standardiser(jnp.zeros_like(mean), jnp.ones_like(std))
    return Standardiser(mean, std + 1e-3)
