"""Networks that act on histories: the world transformer, the MLP member, the trunk.

The trunk is that of the Decision Transformer (Chen et al. 2021): pre-norm GPT blocks on
embeddings, without positions of their own. Two things differ from a plain GPT, both
exact: padding on the left is removed by a mask, and the last block computes only the
positions that a head reads (`read`), which saves a fifth of the training time and
nearly half of a simulated step.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array


class Block(nn.Module):
    """Pre-norm attention and MLP: float[B, T, D] -> float[B, R, D].

    Position t attends to positions <= t with `mask`; R positions are computed.
    """

    num_heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, mask: Array, read: slice, train: bool) -> Array:
        B, T, D = x.shape
        head = D // self.num_heads
        h = nn.LayerNorm()(x)
        q = nn.Dense(D, name="query")(h[:, read])
        k, v = jnp.split(nn.Dense(2 * D, name="key_value")(h), 2, axis=-1)
        q, k, v = (y.reshape(B, -1, self.num_heads, head) for y in (q, k, v))
        position = jnp.arange(T)
        causal = position[read][:, None] >= position[None, :]
        allowed = causal[None, None] & mask[:, None, None, :]
        score = jnp.einsum("bqhd,bkhd->bhqk", q, k) * head**-0.5
        # A padded query sees nothing: a finite minimum keeps it finite, and unread.
        weight = nn.softmax(jnp.where(allowed, score, -1e9), axis=-1)
        weight = nn.Dropout(self.dropout, deterministic=not train)(weight)
        out = jnp.einsum("bhqk,bkhd->bqhd", weight, v).reshape(B, -1, D)
        out = nn.Dense(D, name="out")(out)
        x = x[:, read] + nn.Dropout(self.dropout, deterministic=not train)(out)
        h = nn.relu(nn.Dense(4 * D, name="up")(nn.LayerNorm()(x)))
        h = nn.Dense(D, name="down")(h)
        return x + nn.Dropout(self.dropout, deterministic=not train)(h)


class Trunk(nn.Module):
    """Embeddings to features: float[B, T, D], mask bool[B, T] -> float[B, R, D].

    Causal; `read` chooses the R positions returned. Features under a False mask are
    meaningless.
    """

    num_layers: int
    num_heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, read: slice = slice(None), train: bool = False
    ) -> Array:
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            x = Block(self.num_heads, self.dropout)(
                x, mask, read if last else slice(None), train
            )
        return nn.LayerNorm()(x)


class Outputs(NamedTuple):
    """What a world network says of R steps, in standardised units.

    mean: float[B, R, od], of (s_{t+1} - s_t) / sd_delta
    log_var: float[B, R, od] (MLP: od + 1, the reward last), zeros if not modelled
    reward: float[B, R]
    terminal: float[B, R], the logit of termination, None if not modelled
    bounds: float[], sum of max_lv - min_lv, to be kept small
    """

    mean: Array
    log_var: Array
    reward: Array
    terminal: Array | None
    bounds: Array


def soft_clamp(log_var: Array, low: Array, high: Array) -> Array:
    """log_var between learned bounds, differentiable (PETS; as OfflineRL-Kit)."""
    shape = (1,) * (log_var.ndim - 1) + low.shape
    low, high = low.reshape(shape), high.reshape(shape)
    log_var = high - nn.softplus(high - log_var)
    return low + nn.softplus(log_var - low)


class _Bounds(nn.Module):
    size: int

    @nn.compact
    def __call__(self, log_var: Array) -> tuple[Array, Array]:
        high = self.param("max_log_var", nn.initializers.constant(0.5), (self.size,))
        low = self.param("min_log_var", nn.initializers.constant(-10.0), (self.size,))
        return soft_clamp(log_var, low, high), jnp.sum(high - low)


class _WindowNet(nn.Module):
    """A token for each pair (s_t, a_t), read at all or the newest: [B, R, size].

    One token a step, not two: nothing is read at a state token, and half as many tokens
    cost 13 instead of 30 CPU-ms a training step (3 members, B 64, K 10, width 64).
    """

    size: int
    width: int
    num_layers: int
    num_heads: int

    @nn.compact
    def __call__(self, s: Array, a: Array, mask: Array, read: slice) -> Array:
        # Learned positions inside the window, newest last: a simulated step may run
        # past any episode time that was seen in training.
        position = self.param(
            "position", nn.initializers.normal(0.02), (s.shape[1], self.width)
        )[None]
        state = nn.Dense(self.width, name="state")(s)
        tokens = state + nn.Dense(self.width, name="action")(a) + position
        x = Trunk(self.num_layers, self.num_heads, name="trunk")(tokens, mask, read)
        return nn.Dense(self.size, name="head")(x)


class WorldTransformer(nn.Module):
    """State dynamics and rewards from a window of K steps (spec of OTTO, 2.1).

    `share_trunk` False: a network for the state, another for reward and termination.
    """

    observation_size: int
    width: int
    num_layers: int
    num_heads: int
    share_trunk: bool = False
    gaussian: bool = True
    termination: bool = False

    @nn.compact
    def __call__(
        self, s: Array, a: Array, mask: Array, newest: bool = False
    ) -> Outputs:
        """s: float[B, K, od] standardised, a: float[B, K, ad], mask: bool[B, K].

        Reads all K steps (R = K), or with `newest` only the last (R = 1).
        """
        od = self.observation_size
        s = jnp.where(mask[..., None], s, 0.0)  # masked slots may hold anything
        a = jnp.where(mask[..., None], a, 0.0)
        read = slice(-1, None) if newest else slice(None)
        sizes = (od * (1 + self.gaussian), 1 + self.termination)
        shape = (self.width, self.num_layers, self.num_heads)
        if self.share_trunk:
            out = _WindowNet(sum(sizes), *shape, name="shared")(s, a, mask, read)
            state, feedback = jnp.split(out, [sizes[0]], axis=-1)
        else:
            state = _WindowNet(sizes[0], *shape, name="state")(s, a, mask, read)
            feedback = _WindowNet(sizes[1], *shape, name="reward")(s, a, mask, read)
        mean = state[..., :od]
        log_var, bounds = jnp.zeros_like(mean), jnp.zeros(())
        if self.gaussian:
            log_var, bounds = _Bounds(od, name="bounds")(state[..., od:])
        terminal = feedback[..., 1] if self.termination else None
        return Outputs(mean, log_var, feedback[..., 0], terminal, bounds)


class WorldMLP(nn.Module):
    """One member of an ensemble on single transitions, as in MOPO (Yu et al. 2020).

    Gaussian over (delta, reward); SiLU between layers, as in OfflineRL-Kit.
    """

    observation_size: int
    widths: tuple[int, ...]
    termination: bool = False

    @nn.compact
    def __call__(self, s: Array, a: Array) -> Outputs:
        """s: float[B, R, od] standardised, a: float[B, R, ad]."""
        size = self.observation_size + 1
        x = jnp.concatenate([s, a], axis=-1)
        for layer, width in enumerate(self.widths):
            x = nn.silu(nn.Dense(width, name=f"layer_{layer}")(x))
        out = nn.Dense(2 * size + self.termination, name="head")(x)
        log_var, bounds = _Bounds(size, name="bounds")(out[..., size : 2 * size])
        terminal = out[..., -1] if self.termination else None
        return Outputs(
            out[..., : size - 1], log_var, out[..., size - 1], terminal, bounds
        )


class DecisionTransformer(nn.Module):
    """Actions from returns, states and past actions (Chen et al. 2021).

    Tokens (R_t, s_t, a_t) with a learned embedding of the episode's timestep on all
    three; the action is read at the state token.
    """

    action_size: int
    width: int
    num_layers: int
    num_heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(
        self,
        to_go: Array,
        s: Array,
        a: Array,
        timestep: Array,
        mask: Array,
        train: bool = False,
    ) -> Array:
        """to_go: float[B, K]; s: float[B, K, od]; a: float[B, K, ad]; timestep:
        int32[B, K]; mask: bool[B, K] -> actions float[B, K, ad] in (-1, 1)."""
        B, K, _ = s.shape
        s = jnp.where(mask[..., None], s, 0.0)  # masked slots may hold anything
        a = jnp.where(mask[..., None], a, 0.0)
        to_go = jnp.where(mask, to_go, 0.0)
        timestep = jnp.where(mask, jnp.clip(timestep, 0, self.max_timestep - 1), 0)
        time = nn.Embed(
            self.max_timestep,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            name="time",
        )(timestep)
        tokens = jnp.stack(
            [
                nn.Dense(self.width, name="return")(to_go[..., None]) + time,
                nn.Dense(self.width, name="state")(s) + time,
                nn.Dense(self.width, name="action")(a) + time,
            ],
            axis=2,
        ).reshape(B, 3 * K, self.width)
        tokens = nn.LayerNorm(name="norm")(tokens)
        tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
        x = Trunk(self.num_layers, self.num_heads, self.dropout, name="trunk")(
            tokens, jnp.repeat(mask, 3, axis=1), slice(1, None, 3), train
        )
        return jnp.tanh(nn.Dense(self.action_size, name="head")(x))
