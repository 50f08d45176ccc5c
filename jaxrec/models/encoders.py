"""Encoders of a user's history: from the embeddings of its events to a state.

All are called as `encoder(x, length, train=False, only_last=False)`:

    x: float[B, T, D], events from the left; length: int32[B], 0 to T
    -> float[B, T, D'], out[b, t] = the state after events 0..t; or [B, D'] with
    `only_last`: the state after the last event, without the cost of the others.

They are causal, and blind to the slots >= max(length, 1), whose outputs mean nothing.
The state of an empty history is out[b, 0]: the GRU reads the (trainable) embedding of
padding there, the others read zeros, as in the code of SQN and its successors.
Parameters are float32, and so are the outputs, also for bfloat16 inputs.

mamba and mamba2 can also go on from a state, for packed rows, users longer than a row
and serving: `encoder.advance`, see `mamba`.

A new encoder is a class with this call and a property `out_width`, a line in ENCODERS,
and its options in SPEC under the names of the class's fields.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxrec.models import hstu, mamba, sasrec, sequence
from jaxrec.types import Array, UserError

# "code" is that of SQN, SNQN and SA2C. Options of other encoders are ignored.
SPEC = dict(
    name="gru",  # see ENCODERS
    width=64,  # of the item embeddings and of the state (caser: 112), code
    dropout=-1.0,  # < 0: as the code, 0 in gru and nextitnet, 0.1 in caser and sasrec
    num_layers=1,  # gru, sasrec; code; mamba, mamba2: 2 are recommended, ours
    num_heads=1,  # sasrec, linrec, hstu; code
    prenorm="queries",  # sasrec; code; "all": a usual pre-norm transformer
    positions="left",  # sasrec; code; "recency": counted from the newest event
    # sqrt(D) times item vectors, sasrec, mamba, mamba2; 1: as SASRec's own code and
    # RecMamba's, 0: as SQN's; < 0: 0 in sasrec and linrec, 1 in mamba and mamba2
    scale_embedding=-1,
    ffn=1,  # sasrec: width of the hidden layer over D, code
    attention="full",  # sasrec, hstu; "blockwise": the same in memory linear in T, ours
    heights=(2, 3, 4),  # caser: events under a horizontal filter, code
    filters=16,  # caser: horizontal filters of each height, code
    dilations=(1, 2, 1, 2, 1, 2),  # nextitnet: a block each, code
    kernel=3,  # nextitnet; code
    block="recommended",  # mamba, mamba2; mamba: or "paper", RecMamba's
    state=32,  # mamba, mamba2: size of a channel's state, RecMamba's code
    conv=4,  # mamba, mamba2: taps of the convolution, RecMamba's code
    expand=2,  # mamba, mamba2: inner width over D, RecMamba's code
    head_dim=64,  # mamba2: channels that decay alike, ours
    dt_rank=0,  # mamba, mamba2: of the projection to dt, 0 = ceil(width / 16), code
    init_scheme="",  # mamba, mamba2: mamba, recmamba_xavier, selective; "": block's
    gaps=0,  # mamba, mamba2: buckets of the time since the event before, 0 = off, ours
    time_chunk=256,  # mamba, mamba2: events a piece, for memory and speed alone, ours
    scan="auto",  # mamba, mamba2: how the scan is computed, see jaxrec.ops
)

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "gru": sequence.GRU,
    "caser": sequence.Caser,
    "nextitnet": sequence.NextItNet,
    "sasrec": sasrec.SASRec,
    "linrec": functools.partial(sasrec.SASRec, attention="linear"),
    "hstu": hstu.HSTU,
    "mamba": mamba.Mamba,
    "mamba2": functools.partial(mamba.Mamba, mixer="ssd"),
}


def make(config: Any, seq_len: int) -> nn.Module:
    """The encoder that the fields of SPEC describe, for histories up to `seq_len`.

    Raises UserError for unknown names and sizes that do not fit.
    """
    if config.name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(f"encoder {config.name!r} is unknown: use one of {known}")
    choices = dict(
        prenorm=("queries", "all"),
        positions=("left", "recency"),
        attention=("full", "blockwise"),
    )
    for field, (one, other) in choices.items():
        if config[field] not in (one, other):
            raise UserError(
                f"encoder.{field} {config[field]!r} is unknown: use {one} or {other}"
            )
    if config.get("dropout", -1.0) >= 1:
        raise UserError(f"encoder.dropout is {config.dropout}: must be below 1")
    encoder, fixed = ENCODERS[config.name], {}
    if isinstance(encoder, functools.partial):
        encoder, fixed = encoder.func, encoder.keywords
    if config.width % config.num_heads and "num_heads" in encoder.__dataclass_fields__:
        raise UserError(
            f"encoder.num_heads {config.num_heads} does not divide encoder.width "
            f"{config.width}: change one"
        )
    if config.name == "caser" and max(config.heights) > seq_len:
        raise UserError(
            f"encoder.heights {tuple(config.heights)} has filters higher than the "
            f"{seq_len} events of a history: drop them or raise data.seq_len"
        )
    # Runs of before an option was there have no field.
    options = {key: config.get(key, value) for key, value in SPEC.items()}
    options |= dict(max_len=seq_len) | fixed
    del options["name"]  # of the encoder, not of the Flax module
    for field in ("dropout", "scale_embedding"):
        if options[field] < 0:
            del options[field]  # the module's own
    taken = encoder.__dataclass_fields__
    return encoder(**{key: v for key, v in options.items() if key in taken})


def out_width(config: Any) -> int:
    """D' of the encoder."""
    return make(config, max(config.heights)).out_width  # whatever the length


def last(
    encoder: nn.Module,
    x: Array,
    length: Array,
    train: bool = False,
    gap: Array | None = None,
) -> Array:
    """The state after the last event: float[B, T, D], int32[B] -> float[B, D'].

    Without dropout equal to `encoder(x, length)` at max(length - 1, 0); Caser and
    SASRec do not compute the other positions. gap: see `mamba`, for encoders with it.
    """
    timed = {} if gap is None else dict(gap=gap)
    return encoder(x, length, train, only_last=True, **timed)
