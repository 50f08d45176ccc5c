"""State generators: p(state | what is seen), by diffusion, regression or a VAE.

One interface for teams of agents and for users' profiles, so that a method switches
what infers the state by a name:

    generator = make(config, network, shape)      config: HPARAMS, shape of one state
    params = generator.init(key, condition)       the condition of one example
    average = params                              decayed by `ema` after each update
    loss = generator.loss(params, average, key, x0, condition, weight)   one example
    state = generator.sample(average, key, condition)                    one example

`network`: a Flax module called as those of `models.denoiser`; all three kinds use the
same. vmap the two functions over examples, with a key each, or hand `sample` a whole
batch with `lead`, the leading axes of the condition. States are normalised to
[-1, 1]; `weight` float[*shape] says which numbers count (0 for those that are
constant); dead agents and padding are the caller's, who weighs examples.

diffusion   see `losses.diffusion` and `samplers`; with `consistency` a teacher (EDM)
            and the student distilled from its average train side by side (ours)
regressor   the network told nothing of the state, by squared error: E[s | c], which is
            also what diffusion gives in one step
vae         a conditional VAE with a learned prior (as SIDE infers states, AAMAS'22,
            in our form): z ~ p(z | c), the network decodes
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec import samplers
from jaxrec.losses import diffusion
from jaxrec.models.denoiser import Condition
from jaxrec.types import Array, UserError

KINDS = ("diffusion", "regressor", "vae")
HPARAMS = dict(
    kind="diffusion",  # see KINDS
    diffusion=diffusion.SPEC,
    drop=0.1,  # share of the examples whose condition is dropped; diffusion alone
    guidance=0.0,  # w of (1 + w) f(c) - w f(none); 0 = a calibrated belief
    ema=0.995,  # decay of the weights that are sampled from
    clamp_known=True,  # what is seen for certain is copied into the state
    latent=32,  # vae: size of z
    kl=0.2,  # vae: weight of the KL divergence, a number of the state
)


class Generator(NamedTuple):
    """`init(key, condition)` -> params.

    `loss(params, average, key, x0, condition, weight=None)` -> float[], gradients in
        `params` alone.
    `sample(params, key, condition, lead=(), known=None)` -> float[*lead, *shape];
        `known` as in `samplers`.
    """

    init: Callable[..., Any]
    loss: Callable[..., Array]
    sample: Callable[..., Array]


def make(config: Any, network: nn.Module, shape: tuple[int, ...]) -> Generator:
    """The generator `config.kind` of states float[*shape]."""
    if config.kind not in KINDS:
        raise UserError(
            f"generator {config.kind!r} is unknown: use one of {', '.join(KINDS)}"
        )
    if not 0 <= config.drop < 1 or not 0 <= config.ema < 1:
        raise UserError(
            f"drop={config.drop} and ema={config.ema} are shares, at least 0, below 1"
        )
    if config.latent < 1:
        raise UserError(f"latent={config.latent}: the VAE needs at least 1")
    diffusion.check(config.diffusion)
    if config.guidance and not config.drop:
        raise UserError(
            f"guidance={config.guidance} needs a network that was trained without its "
            "condition too: set drop above 0"
        )
    build = dict(diffusion=_diffusion, regressor=_regressor, vae=_vae)[config.kind]
    made = build(config, network, shape)

    def sample(
        params: Any,
        key: Array,
        condition: Condition,
        lead: tuple[int, ...] = (),
        known: samplers.Known | None = None,
    ) -> Array:
        known = known if config.clamp_known else None
        return made.sample(params, key, condition, lead, known)

    return made._replace(sample=sample)


def ema(decay: float, average: Any, params: Any, step: Array) -> Any:
    """average + (1 - d)(params - average), d = min(decay, (1 + t) / (10 + t)).

    `step` t: updates before this one. The second bound keeps the first weights out of
    young averages (as TensorFlow's does). With decay 0 it is `params`.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: new + d * (old - new), average, params)


def _diffusion(config, network, shape):
    spec = config.diffusion
    distilled = spec.sampler == "consistency"
    abar = diffusion.schedule(spec) if spec.sampler in diffusion.VP else None

    def init(key: Array, condition: Condition) -> Any:
        key, key_student = jax.random.split(key)
        empty = jnp.zeros(shape), jnp.ones(()), condition
        params = network.init(key, *empty)
        if distilled:
            return dict(teacher=params, student=network.init(key_student, *empty))
        return params

    def closed(params: Any, condition: Condition, given: Any) -> diffusion.Network:
        return lambda x, level: network.apply(params, x, level, condition, given)

    def loss(params, average, key, x0, condition, weight=None):
        key, key_drop, key_student = jax.random.split(key, 3)
        given = (jax.random.uniform(key_drop) >= config.drop).astype(jnp.float32)
        if spec.sampler in diffusion.VP:
            f = closed(params, condition, given)
            bars = jnp.asarray(abar)
            return diffusion.x0_loss(f, key, x0, bars, weight, spec.weighting)
        if not distilled:
            f = closed(params, condition, given)
            return diffusion.edm_loss(f, key, x0, spec, weight)
        average = jax.lax.stop_gradient(average)
        of = lambda tree, name: closed(tree[name], condition, given)  # noqa: E731
        return diffusion.edm_loss(
            of(params, "teacher"), key, x0, spec, weight
        ) + diffusion.consistency_loss(
            of(params, "student"),
            of(average, "student"),
            key_student,
            x0,
            spec,
            weight,
            of(average, "teacher"),
        )

    def sample(params, key, condition, lead, known):
        params = params["student"] if distilled else params
        f = samplers.guided(
            closed(params, condition, 1.0),
            closed(params, condition, 0.0),
            config.guidance,
        )
        return samplers.sample(spec, f, key, (*lead, *shape), known)

    return Generator(init, loss, sample)


def _regressor(config, network, shape):
    def init(key: Array, condition: Condition) -> Any:
        return network.init(key, jnp.zeros(shape), jnp.ones(()), condition)

    def loss(params, average, key, x0, condition, weight=None):
        f = lambda x, level: network.apply(params, x, level, condition)  # noqa: E731
        return diffusion.regression_loss(f, x0, weight)

    def sample(params, key, condition, lead, known):
        x = jnp.zeros((*lead, *shape))
        found = network.apply(params, x, jnp.ones(()), condition)
        return samplers.clamp(_clip(config, found), known)

    return Generator(init, loss, sample)


class _Gaussian(nn.Module):
    """Mean and log-variance of z from vectors: two layers, then two of `size`."""

    size: int
    width: int = 256

    @nn.compact
    def __call__(self, *parts: Array) -> tuple[Array, Array]:
        x = jnp.concatenate(parts, axis=-1)
        for layer in range(2):
            x = nn.silu(nn.Dense(self.width, name=f"layer_{layer}")(x))
        out = nn.Dense(2 * self.size, name="out")(x)
        mean, log_var = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(log_var, -10.0, 5.0)


def _vae(config, network, shape):
    prior, posterior = _Gaussian(config.latent), _Gaussian(config.latent)

    def init(key: Array, condition: Condition) -> Any:
        key_network, key_prior, key_posterior = jax.random.split(key, 3)
        c, x0 = flat_condition(condition, ()), jnp.zeros(shape)
        told = with_vector(condition, jnp.zeros(config.latent))
        return dict(
            network=network.init(key_network, x0, jnp.ones(()), told),
            prior=prior.init(key_prior, c),
            posterior=posterior.init(key_posterior, x0.reshape(-1), c),
        )

    def decode(params: Any, z: Array, condition: Condition) -> Array:
        told = with_vector(condition, z)
        x = jnp.zeros((*z.shape[:-1], *shape))
        return network.apply(params["network"], x, jnp.ones(()), told)

    def loss(params, average, key, x0, condition, weight=None):
        c = flat_condition(condition, ())
        mean, log_var = posterior.apply(params["posterior"], x0.reshape(-1), c)
        other, other_log_var = prior.apply(params["prior"], c)
        z = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
        error = jnp.square(decode(params, z, condition) - x0)
        divergence = gaussian_kl(mean, log_var, other, other_log_var) / x0.size
        return diffusion.weighted_mean(error, weight) + config.kl * divergence

    def sample(params, key, condition, lead, known):
        mean, log_var = prior.apply(params["prior"], flat_condition(condition, lead))
        z = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
        return samplers.clamp(_clip(config, decode(params, z, condition)), known)

    return Generator(init, loss, sample)


def gaussian_kl(mean: Array, log_var: Array, other: Array, other_log_var: Array):
    """KL(N(mean, e^log_var) || N(other, e^other_log_var)): float[n] each -> float[]."""
    apart = jnp.square(mean - other) / jnp.exp(other_log_var)
    ratio = log_var - other_log_var
    return jnp.sum(jnp.exp(ratio) + apart - 1 - ratio) / 2


def flat_condition(condition: Condition, lead: tuple[int, ...]) -> Array:
    """All that is seen as one vector: float[*lead, n]; tokens masked, at their places.

    A set of tokens is summed up in its order: the two Gaussians of the VAE are no
    transformers.
    """
    parts = []
    for name, part in condition._asdict().items():
        if part is None or name == "mask":
            continue
        if name == "tokens" and condition.mask is not None:
            part = jnp.where(condition.mask[..., None], part, 0.0)
        parts.append(part.astype(jnp.float32).reshape(*lead, -1))
    return jnp.concatenate(parts, axis=-1)


def with_vector(condition: Condition, z: Array) -> Condition:
    """The condition with z float[..., n] joined to its vector."""
    vector = condition.vector
    joined = z if vector is None else jnp.concatenate([vector, z], axis=-1)
    return condition._replace(vector=joined)


def _clip(config: Any, x: Array) -> Array:
    most = config.diffusion.clip
    return jnp.clip(x, -most, most) if most else x
