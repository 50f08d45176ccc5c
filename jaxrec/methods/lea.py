"""SQN with further actions and rewards from a teacher: the idea of LEA, in our form.

Wang, Karatzoglou, Arapakis and Jose, SIGIR 2024, arXiv 2403.16948, known to us from its
abstract: a language model, fitted to a part of the users, serves as the environment. It
proposes actions that the log lacks and rewards them; the recommender learns from both,
by cross entropy and by Q-learning. In tables name the run by its teacher; the terms
below are our own reading.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import logs, optim
from jaxrec.losses import recommender as losses
from jaxrec.losses import softmax
from jaxrec.methods import copies, ranked, recommender, windows
from jaxrec.methods import teacher as teachers
from jaxrec.models import recommender as networks
from jaxrec.ops import history
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    **recommender.HPARAMS,
    **recommender.VALUE_HPARAMS,
    teacher_stage="teacher",  # the earlier stage that is the environment
    item_vectors="",  # or a .npy file of item vectors, such as of their texts; see the
    # config, which then has no teacher to train
    proposals=1,  # further actions of each state, ours
    proposal_ce=0.1,  # weight of their cross entropy, ours
    proposal_td=0.1,  # weight of their value loss, ours
    similarity=0.1,  # weight of the teacher's state as a target, ours
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """L = SQN + c L_ce(a~) + d L_q(s, a~, r~) + e (1 - cos(P x, s~))."""
    recommender.check(config, info)
    most = info["num_items"] - 1  # all but the item taken
    if not 1 <= config.proposals <= most:
        raise UserError(
            f"proposals={config.proposals}: must be 1 to {most}, as the data "
            f"{info.get('name', '')!r} have {info['num_items']} items"
        )
    if config.item_vectors:
        if config.teacher_stage in info.get("stages", {}):
            logs.say(
                f"lea: item_vectors are the teacher, stage {config.teacher_stage!r} "
                "was trained for nothing: --config=configs/lea.py:vectors leaves it out"
            )
        teacher = teachers.of_vectors(config.item_vectors, info)
    else:
        teacher = teachers.of_stage(config.teacher_stage, info)
    if config.positions != "last":
        raise UserError(
            f"positions={config.positions!r}: the teacher of lea sees one event of a "
            "window, use positions=last"
        )
    network = networks.make(config, info, q_heads=0)
    optimiser = optim.make_timed(config.optim, config.steps)
    click_reward = float(info["rewards"][0])

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        event = windows.transition(batch)
        frozen = jax.tree.map(jnp.copy, teacher.init(earlier))
        shape = jax.eval_shape(teacher.embed, frozen, event.items, event.length)

        def one(key: Array) -> Any:
            key_network, key_project = jax.random.split(key)
            params = network.init(key_network, event.items, event.length)
            x = recommender.state_of(network, params, event.items, event.length)
            size = (x.shape[-1], shape.shape[-1])
            project = jax.nn.initializers.xavier_uniform()(key_project, size)
            return dict(network=params, project=project)

        return copies.init_both(one, optimiser.init, key).replace(extra=frozen)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = windows.transition(batch)
        key_main, key_targets, key_extra = jax.random.split(key, 3)
        keys = recommender.dropout_keys(config, key_targets, 2)
        keys_extra = recommender.dropout_keys(config, key_extra, 2)

        # What the environment says of these states.
        embedding = teacher.embed(state.extra, event.items, event.length)
        preference = teacher.preference(state.extra, event.items, event.length)
        items = teachers.propose(preference, event.action, config.proposals)
        given = teachers.reward(preference, event.action, items, click_reward)
        imagined = step(event, items, given)  # [B n] transitions

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            args = network, main["network"], target["network"]
            y = recommender.bellman(*args, event, keys, config)
            y_extra = recommender.bellman(*args, imagined, keys_extra, config)
            y_extra = y_extra.reshape(items.shape)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                net = params["network"]
                x = recommender.state_of(
                    network, net, event.items, event.length, key_main
                )
                logits = recommender.apply(network, net, "logits", x)
                ce = jnp.mean(softmax.cross_entropy(logits, event.action))
                both = jnp.concatenate([event.action[:, None], items], axis=1)
                q = recommender.apply(network, net, "q_at", x, both)
                td = jnp.mean(losses.td(q[:, 0], y, config.td_scale))
                log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), items, axis=1)
                ce_extra = -jnp.mean(log_p)
                td_extra = jnp.mean(losses.td(q[:, 1:], y_extra, config.td_scale))
                far = jnp.mean(1.0 - cosine(x @ params["project"], embedding))
                total = (
                    ce
                    + config.weight * td
                    + config.proposal_ce * ce_extra
                    + config.proposal_td * td_extra
                    + config.similarity * far
                )
                parts = dict(ce=ce, td=td, proposal_ce=ce_extra, proposal_td=td_extra)
                return total, dict(parts, similarity=1.0 - far)

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = optim.descend(
                optimiser, grads, opt_state, main, step=state.step
            )
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    def scores(
        state: TrainState, items: Array, length: Array, timestep: Array
    ) -> Array:
        # The teacher is not asked when serving.
        net = state.params["network"]
        x = recommender.state_of(network, net, items, length)
        return ranked.only_items(recommender.apply(network, net, "logits", x), info)

    return Method(init, train_step, ranked.make_eval_step(scores), scores=scores)


def step(event: windows.Transition, items: Array, reward: Array) -> windows.Transition:
    """The transitions [B n] that follow from other actions: int32[B, n], float[B, n].

    The session is taken to go on: the teacher does not say when users leave.
    """
    count = items.shape[1]
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), event)
    action = items.reshape(-1)
    longer, length = history.append(repeated.items, repeated.length, action)
    return repeated._replace(
        action=action,
        reward=reward.reshape(-1),
        done=jnp.zeros_like(repeated.done),
        next_items=longer,
        next_length=length,
    )


def cosine(x: Array, y: Array) -> Array:
    """float[B, E] each -> float[B]; 0 where one has no direction."""
    norm = jnp.sqrt(jnp.sum(x * x, -1) * jnp.sum(y * y, -1) + 1e-12)
    return jnp.sum(x * y, axis=-1) / norm
