"""Encoders of histories: GRU, Caser, NextItNet. See `encoders` for the call.

They are those of the code of SQN, SAC (Xin et al. 2020), SNQN and SA2C (2022), with
SASRec of `sasrec`, and follow GRU4Rec (Hidasi et al. 2016), Caser (Tang & Wang 2018)
and NextItNet (Yuan et al. 2019), with simplifications that the classes name. Defaults
of the fields are those of that code, which "the code" is below.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array

glorot = nn.initializers.glorot_uniform()  # the default of TF1's layers


def norm(name: str) -> nn.LayerNorm:
    # Two-pass variance: one pass loses all digits of embeddings of size 0.01.
    return nn.LayerNorm(epsilon=1e-8, use_fast_variance=False, name=name)


def existing(length: Array, size: int) -> Array:
    """bool[B, T, 1]: the slots of events."""
    return (jnp.arange(size)[None] < length[:, None])[..., None]


def at_last(x: Array, length: Array) -> Array:
    """float[B, T, D] -> float[B, D] at max(length - 1, 0)."""
    index = jnp.maximum(length - 1, 0)
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def _shift(x: Array, steps: int) -> Array:
    """float[B, T, ...] moved `steps` to the right, zeros from the left."""
    if steps == 0:
        return x
    steps = min(steps, x.shape[1])
    kept = x[:, : x.shape[1] - steps]
    return jnp.concatenate([jnp.zeros_like(x[:, :steps]), kept], axis=1)


def check_length(x: Array, max_len: int) -> None:
    if x.shape[1] > max_len:
        raise ValueError(f"{x.shape[1]} events, but max_len is {max_len}: raise it")


class GRU(nn.Module):
    """Gated recurrent units; TF1's GRUCell, the reset before the product:

        r, u = sigmoid([x_t, h] W_ru + b_ru),   b_ru = 1 at the start
        c = tanh([x_t, r h] W_c + b_c),         h = u h + (1 - u) c

    (flax's GRUCell and PyTorch's reset after it: r (h W).) The products with x_t of
    all t are one, outside the recurrence. `dropout` on the input of each layer, ours.
    """

    width: int = 64
    num_layers: int = 1
    dropout: float = 0.0

    @property
    def out_width(self) -> int:
        return self.width

    @nn.compact
    def __call__(
        self, x: Array, length: Array, train: bool = False, only_last: bool = False
    ) -> Array:
        x = jnp.where(existing(jnp.maximum(length, 1), x.shape[1]), x, 0)
        for layer in range(self.num_layers):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = self._recurrence(x, str(layer))
        return at_last(x, length) if only_last else x

    def _recurrence(self, x: Array, name: str) -> Array:
        n, D = self.width, x.shape[-1]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        w_ru = self.param(f"gates_kernel_{name}", glorot, (D + n, 2 * n))
        b_ru = self.param(f"gates_bias_{name}", ones, (2 * n,))
        w_c = self.param(f"candidate_kernel_{name}", glorot, (D + n, n))
        b_c = self.param(f"candidate_bias_{name}", zeros, (n,))
        x = x.swapaxes(0, 1)  # time first, once: the products are three times as wide
        of_x = x @ jnp.concatenate([w_ru[:D], w_c[:D]], axis=1)
        of_x = of_x + jnp.concatenate([b_ru, b_c])[None, None]

        def step(h: Array, x_t: Array) -> tuple[Array, Array]:
            gates = nn.sigmoid(x_t[:, : 2 * n] + h @ w_ru[D:])
            r, u = gates[:, :n], gates[:, n:]
            c = jnp.tanh(x_t[:, 2 * n :] + (r * h) @ w_c[D:])
            h = u * h + (1 - u) * c
            return h, h

        start = jnp.zeros((x.shape[1], n), of_x.dtype)
        return jnp.moveaxis(jax.lax.scan(step, start, of_x)[1], 0, 1)


class Caser(nn.Module):
    """Convolutions over the last `max_len` events as over an image [max_len, D].

    Horizontal filters of each height, ReLU, maximum over time; one vertical filter over
    the time of each dimension, ReLU. D' = filters * heights + D. As in the code there
    is no user embedding and no layer after; unlike it (that has one output, for the
    whole history) out[b, t] is what it gives where the events after t are zero, ours.
    """

    width: int = 64
    heights: tuple[int, ...] = (2, 3, 4)
    filters: int = 16
    max_len: int = 10
    dropout: float = 0.1

    @property
    def out_width(self) -> int:
        return self.filters * len(self.heights) + self.width

    @nn.compact
    def __call__(
        self, x: Array, length: Array, train: bool = False, only_last: bool = False
    ) -> Array:
        check_length(x, self.max_len)
        size = x.shape[1]
        x = jnp.where(existing(length, size), x, 0)
        x = jnp.pad(x, ((0, 0), (0, self.max_len - size), (0, 0)))
        normal, tenth = (
            nn.initializers.truncated_normal(0.1),
            nn.initializers.constant(0.1),
        )
        pool = self._pool_last if only_last else self._pool_all
        parts = []
        for height in self.heights:
            kernel = self.param(
                f"kernel_{height}", normal, (height, x.shape[-1], self.filters)
            )
            bias = self.param(f"bias_{height}", tenth, (self.filters,))
            parts.append(pool(jnp.einsum("btd,hdf->hbtf", x, kernel), bias[None, None]))
        kernel = self.param("vertical_kernel", normal, (self.max_len,))
        bias = self.param("vertical_bias", tenth, ())
        if only_last:
            parts.append(nn.relu(jnp.einsum("btd,t->bd", x, kernel) + bias))
        else:
            sums = jnp.cumsum(x * kernel[None, :, None], axis=1)
            parts.append(nn.relu(sums + bias))
        out = jnp.concatenate(parts, axis=-1)
        out = nn.Dropout(self.dropout, deterministic=not train)(out)
        return out if only_last else out[:, :size]

    def _pool_last(self, taps: Array, bias: Array) -> Array:
        """taps[i]: product of every event with row i of the filter -> float[B, F]."""
        windows = self.max_len - len(taps) + 1
        y = sum(tap[:, i : i + windows] for i, tap in enumerate(taps))
        return jnp.max(nn.relu(y + bias), axis=1)

    def _pool_all(self, taps: Array, bias: Array) -> Array:
        """The same for the histories that end at each event: float[B, T, F].

        A window that starts at s sees at time t the first t - s + 1 of its events, at
        most all: all that are full enter by a running maximum, the fewer than `height`
        that are partly full one by one, those after t hold zeros. So T positions cost
        `height` times one, not T times.
        """
        height, time = len(taps), jnp.arange(self.max_len)[None, :, None]
        windows = self.max_len - height + 1
        out = jnp.where(time + 1 < windows, nn.relu(bias), 0.0)  # a window after t
        for seen in range(1, height + 1):
            y = sum(_shift(taps[i], seen - 1 - i) for i in range(seen))
            start = time - seen + 1
            y = jnp.where((start >= 0) & (start < windows), nn.relu(y + bias), 0.0)
            out = jnp.maximum(out, jax.lax.cummax(y, axis=1) if seen == height else y)
        return out


class NextItNet(nn.Module):
    """Residual blocks of two causal convolutions with dilations d and 2 d.

    Block: x + ReLU(LN(conv_2d(ReLU(LN(conv_d(x)))))), then padding to zero again. The
    bias of the convolutions is zero at the start; LN's epsilon 1e-8 is ours.
    """

    width: int = 64
    dilations: tuple[int, ...] = (1, 2, 1, 2, 1, 2)
    kernel: int = 3
    dropout: float = 0.0  # of a block's output; the code has none

    @property
    def out_width(self) -> int:
        return self.width

    @nn.compact
    def __call__(
        self, x: Array, length: Array, train: bool = False, only_last: bool = False
    ) -> Array:
        exists = existing(length, x.shape[1])
        x = jnp.where(exists, x, 0)
        for block, dilation in enumerate(self.dilations):
            y = x
            for layer, step in enumerate((dilation, 2 * dilation)):
                # A convolution as one product: [.., x_{t-2d}, x_{t-d}, x_t] W.
                taps = [_shift(y, i * step) for i in reversed(range(self.kernel))]
                y = nn.Dense(
                    x.shape[-1],
                    kernel_init=nn.initializers.truncated_normal(0.02),
                    name=f"conv_{block}_{layer}",
                )(jnp.concatenate(taps, axis=-1))
                y = nn.relu(norm(f"norm_{block}_{layer}")(y))
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
            x = jnp.where(exists, x, 0)
        return at_last(x, length) if only_last else x
