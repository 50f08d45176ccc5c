"""Encoders on selective state spaces: a state of constant size instead of a window.

`block="recommended"` (ours): `num_layers` pre-norm residual blocks of a Mamba mixer and
a feed-forward network, a layer norm at the end, no positions: the state after an event
is a function of the state before it, so that users are served in constant time.

`block="paper"` is RecMamba (Yang et al. 2024, arXiv 2403.16371) as its code has it: one
bare Mamba-1 mixer on sqrt(d) x + learned positions that are counted from the newest
event; no norm, residual or feed-forward. Unlike the code, padding is masked (there it
drives the state before the first event). It cannot be streamed: see `advance`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models import mamba_block as block_lib
from jaxrec.models import mamba_init
from jaxrec.models import mamba_layers as layers_lib
from jaxrec.models.mamba_block import Cache
from jaxrec.models.mamba_layers import Layers, Marks
from jaxrec.ops import selective_scan, ssd
from jaxrec.types import Array, UserError

SCHEMES = "", "mamba", "recmamba_xavier", "selective"
SCANS = dict(mamba1=selective_scan.IMPLEMENTATIONS, ssd=ssd.IMPLEMENTATIONS)
NO_STEP = (
    "encoder.block 'paper' has no step: its positions are counted from the newest "
    "event, so that each event changes the input of all before it; train with "
    "encoder.block=recommended to stream"
)


class Mamba(nn.Module):
    """See the module. `head_dim` is used with `mixer="ssd"` (ENCODERS["mamba2"]) alone.

    `init_scheme`: "mamba", that of Mamba's code, "recmamba_xavier", Xavier-normal on
    every parameter of two axes or more as RecMamba's code (so A is about -1 for all
    states), "selective" (ours), Mamba's but with A = -1, dt from 0.003 to 0.3 in equal
    ratios and larger B and C, "" for that of the block. Small steps, not a small A: a
    step that is learned to be large where it matters writes much there, and forgets
    what was kept before. Time is cut into chunks of `time_chunk` events, which changes
    memory and speed, no number; so does `scan`, see `ops`.

    `gaps` > 0 (ours, after SS4Rec's idea that gaps drive the discretisation): each
    channel's or head's dt is multiplied by a learned positive factor of the time since
    the event before, one for each of `gaps` buckets whose bounds double from a second;
    1 at the start. The call and `advance` then need `gap`: float[B, T], seconds, of
    which the first of a history is 0.
    """

    splits_time = True  # where the mesh does, see `mamba_layers`

    width: int = 64
    num_layers: int = 2
    state: int = 32  # N; RecMamba's code, as are conv and expand
    conv: int = 4
    expand: int = 2
    mixer: str = "mamba1"
    head_dim: int = 64
    dt_rank: int = 0  # of the projection to dt; 0: ceil(width / 16), Mamba's code
    block: str = "recommended"
    init_scheme: str = ""
    time_chunk: int = 256  # ours
    scan: str = "auto"
    gaps: int = 0
    scale_embedding: bool = True
    max_len: int = 10
    dropout: float = 0.2  # RecMamba

    def __post_init__(self) -> None:
        for field in ("width", "num_layers", "state", "conv", "expand", "time_chunk"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"encoder.{field} is {getattr(self, field)}: must be positive"
                )
        if self.dt_rank < 0:
            raise UserError(f"encoder.dt_rank is {self.dt_rank}: use 0 (auto) or more")
        if self.gaps < 0:
            raise UserError(f"encoder.gaps is {self.gaps}: use 0 (off) or more")
        _one_of("block", self.block, ("recommended", "paper"))
        _one_of("init_scheme", self.init_scheme, SCHEMES)
        _one_of("scan", self.scan, ("auto", *SCANS[self.mixer]))
        inner = self.expand * self.width
        if self.mixer == "ssd" and (self.head_dim < 1 or inner % self.head_dim):
            raise UserError(
                f"encoder.head_dim {self.head_dim} does not divide expand * width = "
                f"{inner}: change one"
            )
        if self.block == "paper" and (self.mixer == "ssd" or self.num_layers > 1):
            raise UserError(
                "encoder.block 'paper' is one layer of Mamba-1: set encoder.name=mamba "
                "and encoder.num_layers=1, or encoder.block=recommended"
            )
        super().__post_init__()

    @property
    def out_width(self) -> int:
        return self.width

    @property
    def heads(self) -> int:
        """Width of a head of Mamba-2, 0 for Mamba-1."""
        return self.head_dim if self.mixer == "ssd" else 0

    @property
    def implementation(self) -> str:
        """The scan of more than one event here; "auto" depends on the backend."""
        auto = dict(mamba1=selective_scan.choose, ssd=ssd.choose)[self.mixer]
        return auto(jax.default_backend(), 2) if self.scan == "auto" else self.scan

    def setup(self) -> None:
        layers = []
        for layer in range(self.num_layers):
            inits = mamba_init.mixer(self)
            if self.block == "recommended":
                inits |= mamba_init.rest(self.width)
            layers.append({k: self.param(f"{k}_{layer}", *v) for k, v in inits.items()})
        self.layers = layers
        if self.block == "paper":
            shape = (self.max_len, self.width)
            self.positions = self.param(
                "positions_table", mamba_init.xavier(*shape), shape
            )
        else:
            self.last_norm = {
                f"out_{part}": self.param(f"norm_out_{part}", init, (self.width,))
                for part, init in mamba_init.NORM.items()
            }

    def __call__(
        self,
        x: Array,
        length: Array,
        train: bool = False,
        only_last: bool = False,
        gap: Array | None = None,
    ) -> Array:
        """See `encoders`."""
        if self.block == "paper" and x.shape[1] > self.max_len:
            raise ValueError(
                f"{x.shape[1]} events, but max_len is {self.max_len}: raise it"
            )
        cache = empty_cache(self, x.shape[0])
        return self._run(x, length, None, cache, train, only_last, gap)[0]

    def advance(
        self,
        x: Array,
        length: Array,
        reset: Array | None = None,
        cache: tuple[Cache, ...] | None = None,
        train: bool = False,
        only_last: bool = False,
        gap: Array | None = None,
    ) -> tuple[Array, tuple[Cache, ...]]:
        """Go on from a cache: packed rows, truncated back-propagation, serving.

        x: float[B, T, D], of which the first int32[B] `length` are events; a row of
        length 0 keeps its cache. `reset`: bool[B, T], True at the first event of each
        user of a packed row (the first event of a row goes on from the cache unless it
        is True there); None = nowhere. `cache`: one Cache a layer, of B rows; None =
        `empty_cache`. -> (float[B, T, D] or with `only_last` [B, D], cache after the
        last events). Gradients flow into `cache`: stop them to cut back-propagation.

        Raises UserError for the block that cannot: its positions are not its past's.
        """
        if self.block == "paper":
            raise UserError(NO_STEP)
        cache = empty_cache(self, x.shape[0]) if cache is None else cache
        if len(cache) != self.num_layers:
            raise ValueError(f"a cache of {len(cache)} layers for {self.num_layers}")
        return self._run(x, length, reset, cache, train, only_last, gap)

    def _run(
        self,
        x: Array,
        length: Array,
        reset: Array | None,
        cache: tuple[Cache, ...],
        train: bool,
        only_last: bool,
        gap: Array | None,
    ) -> tuple[Array, tuple[Cache, ...]]:
        if (gap is not None) != (self.gaps > 0):
            raise UserError(
                f"encoder.gaps is {self.gaps}, but the times between events are "
                f"{'not known here' if gap is None else 'given'}: 0 is for encoders "
                "without them"
            )
        key = self.make_rng("dropout") if train and self.dropout > 0 else None
        key_in, key_out, key_layers = (
            (None,) * 3 if key is None else jax.random.split(key, 3)
        )
        x, paper = x.astype(jnp.float32), self.block == "paper"
        time = jnp.arange(x.shape[1])
        valid = time[None] < length[:, None]
        if paper or self.scale_embedding:
            x = x * self.width**0.5
        if paper:
            place = self.max_len - length[:, None] + time[None]
            x = x + self.positions[jnp.minimum(place, self.max_len - 1)]
        x = jnp.where(valid[..., None], block_lib.dropout(x, self.dropout, key_in), 0)
        x, valid = x.swapaxes(0, 1), valid.swapaxes(0, 1)
        reset = None if reset is None else reset.swapaxes(0, 1)
        if gap is not None:
            gap = block_lib.gap_bucket(gap.swapaxes(0, 1), self.gaps)
        layers = Layers(
            each=tuple(self.layers),
            last_norm=None if paper else self.last_norm,
            key=key_layers,
            dropout=self.dropout,
            heads=self.heads,
            scan=self.scan,
        )
        marks = Marks(valid, reset, gap)
        y, cache = layers_lib.run(layers, x, marks, cache, self.time_chunk, only_last)
        if not only_last:
            return y.swapaxes(0, 1), cache
        newest = jnp.maximum(length - 1, 0)[None, :, None]
        y = jnp.take_along_axis(y, newest, axis=0)  # [1, B, D]
        if not paper:
            y = layers.feed_by(key_out, self.num_layers - 1, y)
        return y[0], cache


def empty_cache(encoder: Mamba, rows: int) -> tuple[Cache, ...]:
    """One Cache a layer for `rows` users of whom nothing is known."""
    inner = encoder.expand * encoder.width
    shape = (inner, encoder.state)
    if encoder.heads:
        shape = (inner // encoder.heads, encoder.heads, encoder.state)
    # Buffers of its own for each layer: a server donates them.
    return tuple(
        Cache(
            tail=jnp.zeros((rows, encoder.conv - 1, inner)),
            state=jnp.zeros((rows, *shape)),
        )
        for _ in range(encoder.num_layers)
    )


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        names = " or ".join(filter(None, known))
        raise UserError(f"encoder.{field} {value!r} is unknown: use {names}")
