"""SIDIFF for recommenders: the next item from a session and its inferred profile.

Task B. A stage of the method `profile` has learned p(profile | session); here it is
frozen, and a ranker reads the last L events together with what that stage imagines:

    e = encoder(session)                  x^ ~ p(. | session), M samples
    z = attention of e to the tokens of the samples
    logits = (e + sigmoid(g(e)) W z) E^T  trained by cross entropy; W = 0 at first

`inference` chooses where the profile comes from:

    inferred   the stage: diffusion, a regressor or a VAE as its settings say
    none       nowhere: the plain session model
    oracle     the true profile: what inference could give at most
    placebo    the true profile of another user: what more parameters give alone

Each example sees L events, L from `observe`; held-out events are ranked in the whole
catalogue for every L (`L3/ndcg@10`). The method serves with the longest L and, but for
the oracle and the placebo, sees nothing before it. The idea is SIDIFF's (arXiv
2408.09501, from its abstract: decide from the reconstructed state and the local view);
its form for recommenders and every number are ours.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import metrics, optim
from jaxrec.methods import profile as profile_stage
from jaxrec.methods import profiles, ranked, recommender
from jaxrec.models import encoders
from jaxrec.models import recommender as networks
from jaxrec.models.profile import Fusion
from jaxrec.types import Array, Batch, Method, TrainState, UserError

SOURCES = ("inferred", "none", "oracle", "placebo")
HPARAMS = dict(
    inference="inferred",  # see SOURCES
    stage="inference",  # the earlier stage that infers
    observe=(1, 3, 5, 10),  # L, as of that stage
    samples=1,  # M, imagined profiles that are attended to
    sampler_steps=0,  # K of a diffusion stage; 0 = as the stage says
    size=64,  # of z
    encoder=encoders.SPEC,  # of the session
    tied=False,  # softmax rows = item table
    chunk=4_096,  # items at a time in the softmax, for speed; 0 = all
    optim=optim.spec(lr=1e-3),
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """A next-item model whose state is completed by a profile."""
    profile_stage.check(config, info)
    recommender.check(config, info)
    if config.inference not in SOURCES:
        raise UserError(
            f"inference {config.inference!r} is unknown: use one of "
            f"{', '.join(SOURCES)}"
        )
    guided = config.inference != "none"
    size = max(config.observe)
    network = networks.make(config, info | dict(seq_len=size))
    fusion = Fusion(config.size)
    optimiser = optim.make(config.optim, config.steps)
    lengths = jnp.asarray(config.observe, jnp.int32)
    if guided:
        inference, dims = of_stage(config, info)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        key_network, key_fusion = jax.random.split(key)
        rows = profiles.example(batch)
        session = profiles.recent(rows.items, rows.length, size, size)
        params = dict(network=network.init(key_network, *session))
        frozen = None
        if guided:
            if config.stage not in earlier:
                raise UserError(
                    f"stage {config.stage!r} is not among the earlier ones that this "
                    "stage uses: put it into stages and `uses`"
                )
            found = earlier[config.stage]
            frozen = dict(params=found.target_params, codec=found.extra)
            frozen = jax.tree.map(jnp.copy, frozen)
            e = recommender.state_of(network, params["network"], *session)
            samples = jnp.zeros((len(e), samples_of(config), dims))
            params["fusion"] = fusion.init(key_fusion, samples, e)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, optimiser.init(params), extra=frozen)

    def imagine(
        frozen: Any, key: Array, session: profiles.Session, items: Array, alike=False
    ) -> Array | None:
        """Profiles float[B, M, d]; `items`, the whole history, is for the controls.

        alike: every row draws the same noise, wherever it stands in the batch.
        """
        if not guided:
            return None
        if config.inference == "inferred":

            def sample(session: profiles.Session) -> Array:
                args = frozen["codec"], key, session, config.samples
                return jnp.moveaxis(inference.sample(frozen["params"], *args), 0, 1)

            def alone(row: profiles.Session) -> Array:
                return sample(jax.tree.map(lambda x: x[None], row))[0]

            return jax.vmap(alone)(session) if alike else sample(session)
        if config.inference == "placebo":
            items = profile_stage.another(items)
        truth = profiles.multi_hot(items, info["vocab"])
        return frozen["codec"].encode(truth)[:, None]

    def state_of(
        params: Any, samples: Array | None, session: profiles.Session, key=None
    ) -> Array:
        e = recommender.state_of(network, params["network"], *session, key)
        return e if samples is None else fusion.apply(params["fusion"], samples, e)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        rows = profiles.example(batch)
        key_length, key_sample, key_dropout = jax.random.split(key, 3)
        keep = jax.random.choice(key_length, lengths, (len(rows.items),))
        session = profiles.recent(rows.items, rows.length, size, keep)
        samples = imagine(state.extra, key_sample, session, rows.items)

        def loss(params: Any) -> Array:
            x = state_of(params, samples, session, key_dropout)
            args = params["network"], x, rows.action, config.chunk
            return jnp.mean(recommender.cross_entropy(network, *args))

        value, grads = jax.value_and_grad(loss)(state.params)
        return optim.advance(optimiser, grads, state), dict(loss=value)

    def logits(
        state: TrainState,
        key: Array,
        items: Array,
        length: Array,
        keep: int,
        alike=False,
    ) -> Array:
        session = profiles.recent(items, length, size, keep)
        samples = imagine(state.extra, key, session, items, alike)
        x = state_of(state.params, samples, session)
        y = recommender.apply(network, state.params["network"], "logits", x)
        return ranked.only_items(y, info)

    def scores(
        state: TrainState, items: Array, length: Array, timestep: Array
    ) -> Array:
        # The same noise for everyone and always: a session's profile stays the same.
        return logits(state, jax.random.key(0), items, length, size, alike=True)

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        rows = profiles.example(batch)
        row = jnp.arange(len(rows.items))[:, None]
        weight, sums = batch["weight"], {}
        for number, keep in enumerate(config.observe):
            key_of = jax.random.fold_in(key, number)
            y = logits(state, key_of, rows.items, rows.length, keep)
            if "seen" in batch:
                y = y.at[row, batch["seen"]].set(-jnp.inf)
            rank = metrics.rank(y, rows.action)
            for k in metrics.KS:
                hit = (rank <= k).astype(jnp.float32)
                sums[f"L{keep}/hr@{k}"] = jnp.sum(weight * hit)
                gain = hit / jnp.log2(1.0 + rank)
                sums[f"L{keep}/ndcg@{k}"] = jnp.sum(weight * gain)
        return dict(sums, count=jnp.sum(weight))

    return Method(init, train_step, eval_step, scores=scores)


def samples_of(config: Any) -> int:
    """M; the controls know one profile."""
    return config.samples if config.inference == "inferred" else 1


def of_stage(config: Any, info: dict[str, Any]) -> tuple[profile_stage.Inference, int]:
    """The functions of the stage that infers, and the size of its profiles."""
    section, _ = info.get("stages", {}).get(config.stage, (None, None))
    if section is None or section.method != "profile":
        raise UserError(
            f"stage={config.stage!r}: name an earlier stage of the method profile, or "
            "set inference=none"
        )
    hparams = section[section.method]
    if tuple(hparams.observe) != tuple(config.observe):
        raise UserError(
            f"observe={tuple(config.observe)} is {tuple(hparams.observe)} in stage "
            f"{config.stage!r}: sessions must be alike in both"
        )
    if config.sampler_steps:
        hparams = profile_stage.with_steps(hparams, config.sampler_steps)
        if hparams is None:
            raise UserError(
                f"sampler_steps={config.sampler_steps}: stage {config.stage!r} is no "
                "diffusion model, set it to 0"
            )
    dims = info["vocab"] if hparams.target == "multihot" else hparams.dims
    return profile_stage.make_inference(hparams, info, dims), dims
