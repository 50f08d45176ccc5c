"""Next-item prediction over whole histories: RecMamba's task, packed and carried.

Yang et al., "Uncovering Selective State Space Model's Capabilities in Lifelong
Sequential Recommendation", arXiv 2403.16371. Every event of a history is predicted from
those before it, by the product of the encoder's state and the item's embedding.

With `data.examples="packed"` rows hold many histories, with an encoder that can be
reset between them and go on from a cache (`advance`): histories longer than a row go on
with the state of the batch before, through which no gradient flows (truncated
back-propagation). "users" and "events" are windows, for any encoder.

Losses: "full", a softmax over the catalogue in chunks; "sampled", over `negatives`
shared by the batch, with the logQ correction, or with `temperature` by cosines over it,
in training and in scores, where uniform negatives need no correction (ours); "bce", the
paper's, with one uniform negative for each event that is none of the user's items in
its row or window (the paper's: none in the user's training set, the same where that
fits the row; a history that is cut or goes on in the next row may draw what lies
beyond). `sparse=True` moves the rows of the item table that a batch touches and no
others (see `row_optim`); not with "full", which touches all.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxrec import logs, optim, row_optim
from jaxrec.losses import negatives as negatives_lib
from jaxrec.losses import recommender as losses
from jaxrec.losses import sampled_softmax, softmax
from jaxrec.methods import ranked, recommender
from jaxrec.methods.histories import Examples, examples, segments
from jaxrec.models import encoders
from jaxrec.models import recommender as networks
from jaxrec.ops import context
from jaxrec.types import Array, Batch, Method, TrainState, UserError

TARGETS = ("all", "recalls")
LOSSES = ("full", "sampled", "bce")
HPARAMS = dict(  # ours but where noted
    encoder=encoders.SPEC | dict(name="mamba2", num_layers=2),
    tied=True,  # states are scored by the item table itself, as in the paper
    loss="full",  # sampled, bce: the paper's
    targets="all",  # "recalls": learn only what follows a cue, see data.lifelong
    negatives=128,  # of "sampled"
    temperature=0.0,  # of "sampled": above 0 (0.05 is usual) cosines over it
    popularity=0.0,  # of "sampled": power of the frequency that they are drawn with
    chunk=512,  # of "full": items at a time, for memory and speed; there are many rows
    sparse=False,
    optim=optim.spec(lr=1e-3, clip=1.0, warmup=100),
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """See the module."""
    packed = info.get("packed")
    check(config, info)
    network = networks.make(config, info)
    encoder, vocab = network.encoder, info["vocab"]
    optimiser = optim.make(config.optim, config.steps)
    if config.sparse:  # clipped together with the rows, below
        unclipped = ConfigDict(dict(config.optim) | dict(clip=0.0))
        optimiser = optim.make(unclipped, config.steps)
    rate = optim.learning_rate(config.optim, config.steps)
    cues = jnp.array(sorted(info.get("cues", ())), jnp.int32)
    if config.loss == "sampled":
        sampler = sampled_softmax.sampler(
            info["item_count"], info["num_items"], config.negatives, config.popularity
        )
        if config.temperature:  # popularity alone is corrected, not the number drawn
            log_q = sampler.log_q + np.log(info["num_items"] / config.negatives)
            sampler = sampler._replace(log_q=log_q)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        rows = examples(batch, packed is not None)
        timed = {} if rows.gap is None else dict(gap=rows.gap[:, :1])
        params = network.init(key, rows.items[:, :1], rows.length * 0, **timed)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params))
        if config.sparse:
            table, rest = split(params)
            # Under the table's name, so that its sharding rule places them too.
            moments = of_table(row_optim.init(table))
            state = state.replace(opt_state=(optimiser.init(rest), moments))
        if packed is None:
            return state
        x = jnp.zeros((len(rows.items), 1, network.width))
        own = {"params": params["params"]["encoder"]}
        # Rows without an event leave a cache as it is: this is the empty one.
        none = encoder.apply(own, x, rows.length * 0, method="advance", **timed)[1]
        return state.replace(extra=none)

    def draw(key: Array, rows: Examples) -> Array:
        """Negatives int32[B, T] or [n]; none for the whole catalogue."""
        if config.loss == "sampled":
            return sampler.draw(key)
        if config.loss == "full":
            return jnp.zeros(0, jnp.int32)
        return negatives_lib.outside(
            key, rows.items, rows.target, segments(rows), info["num_items"]
        )

    def loss_of(
        own: Any,
        table: Array,
        ids: tuple[Array, Array, Array],
        negatives: Array,
        rows: Examples,
        cache: Any,
        key: Array,
    ) -> tuple[Array, Any]:
        """`ids`: items, targets and negatives as rows of `table`, the catalogue or
        what of it the batch touches; `negatives`: as items."""
        items, target, other = ids
        x = table[items]
        options = {} if rows.gap is None else dict(gap=rows.gap)
        options |= dict(rngs=dict(dropout=key))
        if rows.reset is None:
            y = encoder.apply(own, x, rows.length, True, **options)
        else:
            args = own, x, rows.length, rows.reset, cache, True
            y, cache = encoder.apply(*args, method="advance", **options)
        real = rows.target > 0
        if config.targets == "recalls":
            real = real & jnp.isin(rows.items, cues)
        y, target, real = context.events_of((y, target, real))
        if config.loss == "bce":
            other = context.events_of(other)
            score = jnp.sum(y * table[target], axis=-1)
            below = jnp.sum(y * table[other], axis=-1)
            found = jax.vmap(losses.bce)(score, below)
        elif config.loss == "sampled":
            log_q = jnp.zeros(len(table)).at[other].set(sampler.log_q[negatives])
            bias = jnp.zeros(len(table))
            found = sampled_softmax.sampled_cross_entropy(
                y,
                table,
                bias,
                target,
                other,
                log_q,
                config.temperature,
            )
        else:
            size = softmax.chunk_size(vocab, config.chunk)
            found = softmax.chunked_cross_entropy(
                y,
                table,
                jnp.zeros(vocab),
                target,
                size,
                network.num_items,
            )
        total = jnp.sum(jnp.where(real, found, 0.0))
        return total / jnp.maximum(jnp.sum(real), 1), cache

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key_negatives, key_dropout = jax.random.split(key)
        rows = examples(batch, packed is not None)
        negatives = draw(key_negatives, rows)
        ids = rows.items, rows.target, negatives
        cache = jax.lax.stop_gradient(state.extra)

        def loss(own: Any, table: Array, ids: Any) -> tuple[Array, Any]:
            return loss_of(own, table, ids, negatives, rows, cache, key_dropout)

        if config.sparse:
            state, value, cache = sparse_step(state, loss, ids)
        else:

            def whole(params: Any) -> tuple[Array, Any]:
                table, own = split(params)
                return loss(own, table, ids)

            (value, cache), grads = jax.value_and_grad(whole, has_aux=True)(
                state.params
            )
            updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            state = state.replace(params=params, opt_state=opt_state)
        tokens = jnp.sum(rows.target > 0).astype(jnp.float32)
        state = state.replace(step=state.step + 1, extra=cache)
        return state, dict(loss=value, tokens=tokens)

    def sparse_step(state: TrainState, loss: Any, ids: Any) -> tuple:
        table, own = split(state.params)
        touched, ids = row_optim.distinct(ids, vocab)
        gathered = row_optim.gather(table, touched)
        (value, cache), (grads, row_grads) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(own, gathered, ids)
        if config.optim.clip > 0:
            norm = optax.tree.norm((grads, row_grads))
            scale = jnp.minimum(1.0, config.optim.clip / jnp.maximum(norm, 1e-12))
            grads, row_grads = jax.tree.map(lambda g: scale * g, (grads, row_grads))
        of_own, named = state.opt_state
        moments = named["item_table"]["embedding"]
        updates, of_own = optimiser.update(grads, of_own, own)
        now = rate(state.step) if callable(rate) else rate
        table, moments = row_optim.update(
            row_grads, touched, table, moments, state.step, now
        )
        params = joined(state.params, table, optax.apply_updates(own, updates))
        return (
            state.replace(params=params, opt_state=(of_own, of_table(moments))),
            value,
            cache,
        )

    return ranked.method(network, info, init, train_step)


def split(params: Any) -> tuple[Array, Any]:
    """(item table float[V, D], the encoder's parameters); biases of items stay zero."""
    found = params["params"]
    return found["item_table"]["embedding"], {"params": found.get("encoder", {})}


def of_table(x: Any) -> dict[str, Any]:
    """Under the name that the table has among the parameters."""
    return dict(item_table=dict(embedding=x))


def joined(params: Any, table: Array, own: Any) -> Any:
    """`params` with these parts."""
    parts = of_table(table)
    if own["params"]:
        parts["encoder"] = own["params"]
    return {"params": dict(params["params"]) | parts}


def check(config: Any, info: dict[str, Any]) -> None:
    """Raises UserError for what cannot be; says what is cut."""
    recommender.check(config, info)
    if not config.tied:
        raise UserError("tied=False: recmamba scores by the item table, set tied=True")
    if config.loss not in LOSSES:
        raise UserError(f"loss {config.loss!r} is unknown: use {', '.join(LOSSES)}")
    if config.targets not in TARGETS:
        raise UserError(f"targets {config.targets!r} is unknown: use all or recalls")
    if config.targets == "recalls" and not info.get("cues"):
        raise UserError(
            f"targets=recalls: the data {info.get('name', '')!r} plant none, use "
            "data.source=synthetic_lifelong or targets=all"
        )
    if config.loss != "full":
        recommender.check_negatives(config, info, fewest=1)
    if config.temperature < 0 or (config.temperature and config.loss != "sampled"):
        raise UserError(
            f"temperature={config.temperature} with loss={config.loss}: use 0, or with "
            "loss=sampled a number above it"
        )
    if config.sparse and config.loss == "full":
        raise UserError(
            "sparse=True with loss=full: a softmax over the catalogue touches every "
            "row, use loss=sampled or loss=bce"
        )
    if config.sparse and (config.optim.name != "adam" or config.optim.weight_decay):
        raise UserError(
            f"sparse=True has Adam without decay, not {config.optim.name}: set "
            "optim.name=adam and optim.weight_decay=0"
        )
    encoder = encoders.make(config.encoder, info["seq_len"])
    if (getattr(encoder, "gaps", 0) > 0) != info.get("gaps", False):
        raise UserError(
            f"encoder.gaps={getattr(encoder, 'gaps', 0)} of {config.encoder.name} with "
            f"data.gaps={info.get('gaps', False)}: with encoder mamba or mamba2 set "
            "both, else none"
        )
    packed, longer = info.get("packed"), info.get("longer")
    if longer:
        done = "goes on with their state, evaluation sees"
        if packed is None:
            done = "and evaluation see"
        logs.say(
            f"{longer:,} histories are longer than data.seq_len={info['seq_len']}: "
            f"training {done} their last events"
        )
    if packed is None:
        return
    if not hasattr(encoder, "advance") or getattr(encoder, "block", "") == "paper":
        raise UserError(
            f"encoder {config.encoder.name} cannot go on from a state, which packed "
            "rows need: set data.examples=users, or use encoder mamba or mamba2"
        )
