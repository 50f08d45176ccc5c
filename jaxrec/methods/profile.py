"""Profile inference: p(profile | session), SIDIFF's idea for users; task A.

SIDIFF (arXiv 2408.09501, known to us from its abstract) completes the global state of
a team from an agent's view by diffusion. Here the user is the team, a session of the
last L events the view, the profile of all earlier items the state (see `profiles`);
the full history is a privilege of training. A session encoder conditions the generator
of `generator.kind`: diffusion, or as controls a deterministic regressor or a VAE. L
varies from example to example over `observe`. The recommender form is ours.

Task A, on held-out rows whose history is longer than every L: recall@k of the withheld
items by the mean score of `samples` profiles (`L3/recall@20` with three events seen),
beside it that of one sample, of popularity, of a profile inferred for another user
(placebo), of the true one through the codec (oracle), and of diffusion in one step
(a regression to the mean, `one_step_recall`); error of the mean in the
latent, energy score (lower is better: E|x - s| - E|x - x'| / 2) and spread of samples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import optim
from jaxrec.methods import generator as generators
from jaxrec.methods import profiles
from jaxrec.models import encoders
from jaxrec.models.denoiser import MLP, Condition
from jaxrec.models.profile import SessionEncoder
from jaxrec.ops import catalogue
from jaxrec.types import Array, Batch, Method, TrainState, UserError


def _generator() -> dict[str, Any]:
    """The generator's settings; the latents' std is a third of their range."""
    config = ConfigDict(generators.HPARAMS)
    config.diffusion.sigma_data = 1 / profiles.SPREAD
    return config.to_dict()


HPARAMS = dict(
    target="latent",  # or "multihot"
    dims=64,  # latent: d
    observe=(1, 3, 5, 10),  # L: events of a session, one of these an example
    samples=4,  # M of task A
    generator=_generator(),
    encoder=encoders.SPEC,  # of the session
    width=256,  # of the denoiser
    num_layers=3,  # of the denoiser
    optim=optim.spec(lr=1e-3, clip=1.0),
)
KS = (10, 20, 50)


class Inference(NamedTuple):
    """`init(key)` -> params. `encode(params, session)` -> float[B, D], the condition.
    `loss(params, average, codec, key, session, x0)` -> float[].
    `sample(params, codec, key, session, num)` -> float[num, B, d], num profiles each.
    """

    init: Callable[[Array], Any]
    loss: Callable[..., Array]
    sample: Callable[..., Array]
    size: int  # the longest session


def check(config: Any, info: dict[str, Any]) -> None:
    """Raises UserError where the data are no sessions or `observe` does not fit."""
    if "num_items" not in info:
        raise UserError(
            f"the data {info.get('name', '')!r} are no sessions of items: use a source "
            "of events, such as --config.data.source=simulated"
        )
    most = info["seq_len"]
    if not config.observe or min(config.observe) < 1 or max(config.observe) > most:
        raise UserError(
            f"observe={tuple(config.observe)}: numbers of events from 1 to "
            f"data.seq_len={most}, which is how far back a profile reaches"
        )
    if config.samples < 1:
        raise UserError(f"samples={config.samples}: at least 1")


def make_inference(config: Any, info: dict[str, Any], dims: int) -> Inference:
    """The encoder and generator of a stage, as functions of their parameters."""
    size = max(config.observe)
    network = SessionEncoder(
        info["vocab"], config.encoder.width, encoders.make(config.encoder, size)
    )
    made = generators.make(
        config.generator, MLP(config.width, config.num_layers), (dims,)
    )

    def init(key: Array) -> Any:
        key_session, key_generator = jax.random.split(key)
        items = jnp.zeros((1, size), jnp.int32)
        params = network.init(key_session, items, jnp.ones(1, jnp.int32))
        e = network.apply(params, items, jnp.ones(1, jnp.int32))
        return dict(session=params, generator=made.init(key_generator, Condition(e[0])))

    def loss(params, average, codec, key, session, x0):
        keys = jax.random.split(key, len(x0) + 1)
        dropout = {"dropout": keys[-1]}
        e = network.apply(params["session"], *session, True, rngs=dropout)

        def one(key: Array, x0: Array, e: Array) -> Array:
            both = params["generator"], average["generator"]
            return made.loss(*both, key, x0, Condition(e), codec.weight())

        return jnp.mean(jax.vmap(one)(keys[:-1], x0, e))

    def sample(params, codec, key, session, num):
        e = network.apply(params["session"], *session)
        known = codec.known(session)
        lead = (num, e.shape[0])
        e = jnp.broadcast_to(e[None], (*lead, e.shape[-1]))
        if known is not None:
            known = tuple(jnp.broadcast_to(x[None], (*lead, dims)) for x in known)
        return made.sample(params["generator"], key, Condition(e), lead, known)

    return Inference(init, loss, sample, size)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Learns to complete profiles; the state keeps the codec and averaged weights."""
    check(config, info)
    codec, dims = profiles.make_codec(config.target, config.dims, info)
    inference = make_inference(config, info, dims)
    single = with_steps(config, 1)
    single = single and make_inference(single, info, dims)
    optimiser = optim.make(config.optim, config.steps)
    lengths = jnp.asarray(config.observe, jnp.int32)
    popular = jnp.asarray(info["item_count"], jnp.float32)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        params = inference.init(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimiser.init(params),
            target_params=jax.tree.map(jnp.copy, params),  # the average
            extra=jax.tree.map(jnp.copy, codec),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        rows = profiles.example(batch)
        key, key_length = jax.random.split(key)
        keep = jax.random.choice(key_length, lengths, (len(rows.items),))
        session = profiles.recent(rows.items, rows.length, inference.size, keep)
        x0 = state.extra.encode(profiles.multi_hot(rows.items, info["vocab"]))

        def loss(params: Any) -> Array:
            average = state.target_params
            return inference.loss(params, average, state.extra, key, session, x0)

        value, grads = jax.value_and_grad(loss)(state.params)
        new = optim.advance(optimiser, grads, state)
        average = generators.ema(
            config.generator.ema, state.target_params, new.params, state.step
        )
        return new.replace(target_params=average), dict(loss=value)

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        rows = profiles.example(batch)
        codec = state.extra
        profile = profiles.multi_hot(rows.items, info["vocab"])
        x0 = codec.encode(profile)
        longest = profiles.recent(
            rows.items, rows.length, inference.size, inference.size
        )
        seen = profiles.multi_hot(longest.items, info["vocab"])
        some = jnp.any(profile > seen, axis=1)  # every L withholds something
        weight = batch["weight"] * some
        count = jnp.sum(batch["weight"] > 0)
        found = {}
        for number, keep in enumerate(config.observe):
            session = profiles.recent(rows.items, rows.length, inference.size, keep)
            seen = profiles.multi_hot(session.items, info["vocab"])
            allowed = codec.exists[None] & (seen == 0)
            hidden = profile * (seen == 0)
            key_of, key_one = jax.random.split(jax.random.fold_in(key, number))
            args = codec, key_of, session, config.samples
            x = inference.sample(state.target_params, *args)
            mean = jnp.mean(x, axis=0)
            scores = dict(
                recall=codec.decode(mean),
                single_recall=codec.decode(x[0]),
                popular_recall=jnp.broadcast_to(popular[None], profile.shape),
                placebo_recall=codec.decode(another(mean, count)),
                oracle_recall=codec.decode(x0),
            )
            if single is not None:
                args = codec, key_one, session, 1
                one = single.sample(state.target_params, *args)[0]
                scores["one_step_recall"] = codec.decode(one)
            for name, y in scores.items():
                for k, value in recalls(y, hidden, allowed).items():
                    found[f"L{keep}/{name}@{k}"] = value
            found[f"L{keep}/latent_error"] = jnp.mean(jnp.square(mean - x0), axis=1)
            energy, spread = energy_score(x, x0)
            found[f"L{keep}/energy_error"] = energy
            found[f"L{keep}/spread"] = spread
        sums = {name: jnp.sum(weight * value) for name, value in found.items()}
        return dict(sums, count=jnp.maximum(jnp.sum(weight), 1e-9))

    return Method(init, train_step, eval_step)


def with_steps(config: Any, steps: int) -> Any:
    """The settings with so many steps of the sampler; None where there is none."""
    if config.generator.kind != "diffusion":
        return None
    config = ConfigDict(config.to_dict())
    config.generator.diffusion.steps = steps
    return FrozenConfigDict(config)


def another(x: Array, count: Array | None = None) -> Array:
    """Each row's value from another row: half of the batch away, [B, ...].

    Neighbours in a log are often of one user. count: int[], how many rows there are
    before the padding; all by default. Raises UserError for a batch of one.
    """
    if len(x) < 2:
        raise UserError(
            "a placebo is the profile of another row of the batch: set batch_size and "
            "eval.batch_size to 2 or more"
        )
    if count is None:
        return jnp.roll(x, len(x) // 2, axis=0)
    count = jnp.maximum(count, 1)
    return x[(jnp.arange(len(x)) + jnp.maximum(count // 2, 1)) % count]


def recalls(scores: Array, hidden: Array, allowed: Array) -> dict[int, Array]:
    """k -> share of min(k, |hidden|) hidden items among the k best allowed: float[B].

    scores, hidden (0 or 1): float[B, V]; allowed: bool[B, V]. 0 without hidden items.
    """
    most = min(max(KS), scores.shape[1])
    best = catalogue.top_k(jnp.where(allowed, scores, -jnp.inf), most)[1]
    hits = jnp.cumsum(jnp.take_along_axis(hidden, best, axis=1), axis=1)
    total = jnp.sum(hidden, axis=1)
    return {k: hits[:, min(k, most) - 1] / jnp.clip(total, 1.0, k) for k in KS}


def energy_score(x: Array, truth: Array) -> tuple[Array, Array]:
    """E|x - s| - E|x - x'| / 2 over M samples, and E|x - x'|: float[B] each.

    x: float[M, B, d]; truth: float[B, d]. Pairs of different samples count; with one
    sample the spread is 0 and the score is the distance.
    """

    def norm(y: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(y), axis=-1) + 1e-12)

    num = len(x)
    near = jnp.mean(norm(x - truth[None]), axis=0)
    if num == 1:
        return near, jnp.zeros_like(near)
    apart = jnp.sum(norm(x[:, None] - x[None]), axis=(0, 1)) / (num * (num - 1))
    return near - apart / 2, apart
