"""The selective scan as a NumPy loop in float64, and its gradients by complex steps.

f is analytic, so Im f(x + i e d) / e is its derivative along d to rounding error, with
no difference of close numbers (Squire and Trapp 1998). Nothing here is JAX's.
"""

import numpy as np

NAMES = ("u", "dt", "A", "B", "C", "h0")
TINY = 1e-30


def inputs(length, heads=False, seed=0):
    """Random u, dt, A, B, C, h0 of a selective scan, or of one with `heads`."""
    random = np.random.default_rng(seed)
    batch, channels, states, width = 2, 4, 3, 5
    per_step = (channels, width) if heads else (channels,)
    u = random.normal(size=(length, batch, *per_step))
    dt = np.log1p(np.exp(random.normal(size=(length, batch, channels)) - 1))
    A = -np.exp(random.normal(size=channels if heads else (channels, states)))
    B, C = random.normal(size=(2, length, batch, states))
    return u, dt, A, B, C, random.normal(size=(batch, *per_step, states))


def scan(u, dt, A, B, C, h0, reset=None):
    """(y, h_last); leading axes before time, as of a stack of inputs, are kept apart.

    u: [..., T, B, D] or, with A [..., H], [..., T, B, H, P].
    """
    heads = h0.ndim > dt.ndim
    h, ys = h0, []
    for t in range(dt.shape[-3]):
        if reset is not None:
            h = np.where(reset[t].reshape(-1, *(1,) * (3 if heads else 2)), 0, h)
        step = dt[..., t, :, :]
        if heads:
            a = np.exp(step * A[..., None, :])[..., None, None]
            x = (step[..., None] * u[..., t, :, :, :])[..., None]
            b, c = (z[..., t, :, None, None, :] for z in (B, C))
        else:
            a = np.exp(step[..., None] * A[..., None, :, :])
            x = (step * u[..., t, :, :])[..., None]
            b, c = (z[..., t, :, None, :] for z in (B, C))
        h = a * h + x * b
        ys.append(np.sum(h * c, axis=-1))
    return np.stack(ys, axis=-4 if heads else -3), h


def check_behind(step, found, want):
    """((six gradients), (y, h_last)) agree in what belongs to the steps from `step`."""
    for name, got, wanted in zip(NAMES, found[0], want[0]):
        if name not in ("A", "h0"):
            np.testing.assert_allclose(
                got[step:], wanted[step:], atol=1e-11, err_msg=name
            )
    (y, h_last), (want_y, want_h) = found[1], want[1]
    np.testing.assert_allclose(y[step:], want_y[step:], atol=1e-11)
    np.testing.assert_allclose(h_last, want_h, atol=1e-11)


def total(x):
    """Over all axes but that of the stack."""
    return x.reshape(len(x), -1).sum(1)


def gradients(args, reset, y_weight, h_weight):
    """Of sum(y y_weight) + sum(h_last h_weight), one for each of the six inputs."""
    grads = []
    for i, x in enumerate(args):
        steps = 1j * TINY * np.eye(x.size).reshape(x.size, *x.shape)
        stack = [z[None] + (steps if j == i else 0) for j, z in enumerate(args)]
        y, h = scan(*stack, reset)
        value = total(y * y_weight) + total(h * h_weight)
        grads.append((value.imag / TINY).reshape(x.shape))
    return grads
