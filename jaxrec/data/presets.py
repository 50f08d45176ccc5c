"""Who evaluates how: the protocol's fields by preset and source.

"paper" is what the SQN, SNQN and SA2C papers and code do where they use the data, else
their split on data of our choice. "recommended" is ours: a seeded split by time
(or leave-one-out where sessions are users), no first events, no unseen items.
"""

import math
from typing import Any

from jaxrec.types import UserError

# Fields of config.data that a preset decides where they are -1 or "".
PAPER = dict(
    session_by="session",
    session_gap=0.0,
    session_chunk=0,
    sample_sessions=0,
    min_clicks=0,
    min_session=3,  # the papers: more than 2
    min_item=0,
    iterate=False,
    split="random_session",
    test_days=1.0,
    score_first_event=True,
    drop_unseen_items=False,  # the papers number the items of all data
    mask_seen=False,
)
RECOMMENDED = PAPER | dict(
    min_item=3,
    iterate=True,
    split="temporal_quantile",
    score_first_event=False,
    drop_unseen_items=True,
)
# Users' whole histories, as in SASRec (ICDM'18) and its successors: the last item
# tests, the one before validates, items of no training history stay to be ranked.
USERS = dict(
    session_by="user",
    min_item=0,
    split="leave_one_out",
    drop_unseen_items=False,
)
# Ratings cut to sessions, where the split at random needs sessions; ours.
CUT = dict(session_by="user", session_gap=30.0, session_chunk=50)
# What the files test stays as it is, also items that are only in the validation set.
GIVEN = dict(min_session=2, min_item=0, split="pre_split", drop_unseen_items=False)

BY_SOURCE = {
    # A visitor's 4.5 months are one session; visitors first, then items, once.
    "retailrocket": (
        dict(session_by="user", min_item=3),
        dict(session_by="user", session_gap=30.0),
    ),
    "yoochoose": (
        dict(min_clicks=3, min_session=0, sample_sessions=200_000),
        dict(min_clicks=3, min_session=0, sample_sessions=200_000),
    ),
    "buffer": (
        dict(min_session=0, split="pre_split"),
        dict(min_session=0, min_item=0, split="pre_split"),
    ),
    "movielens": (CUT, USERS | dict(mask_seen=True)),
    "recbole": (CUT, USERS),
    "sasrec": (dict(session_by="user", session_chunk=50), USERS),
    "gru4rec": ({}, dict(min_session=2, min_item=5)),
    "table": ({}, {}),
    "simulated": (
        dict(min_session=0),
        dict(min_session=0, min_item=0, split="random_session"),
    ),
    "synthetic_lifelong": (GIVEN, GIVEN),
    "kuairand": (USERS, USERS),
    "lastfm1k": (USERS, USERS),
    "lfm1b": (USERS, USERS),
    "shared/retailrocket-events": (dict(min_item=3), {}),
    "shared/retailrocket-clicks": (GIVEN, GIVEN),
    "shared/yoochoose-100k": (GIVEN, GIVEN),
    "shared/ml-1m": (
        dict(session_by="user", session_chunk=50),
        USERS | dict(mask_seen=True),
    ),
    "shared/ml-100k": (CUT, USERS | dict(mask_seen=True)),
    "shared/lastfm": (
        dict(session_by="user", session_chunk=50),
        USERS | dict(mask_seen=True),
    ),
    "shared/beauty": (
        dict(session_by="user", session_chunk=50),
        USERS | dict(mask_seen=True),
    ),
}
PRESETS = ("paper", "recommended")


def settings(config: Any, source: str, name: str = "") -> dict[str, Any]:
    """All fields of the protocol: the config's where set, else the preset's."""
    if config.preset not in PRESETS:
        raise UserError(f"data.preset={config.preset!r}: one of {', '.join(PRESETS)}")
    number = PRESETS.index(config.preset)
    key = f"shared/{name}" if source == "shared" else source
    chosen = dict((PAPER, RECOMMENDED)[number])
    chosen |= BY_SOURCE.get(key, ({}, {}))[number]
    for field, default in chosen.items():
        value = config.get(field, -1)
        if value not in (-1, ""):
            chosen[field] = bool(value) if isinstance(default, bool) else value
    for field in ("valid", "test", "click_reward", "buy_reward"):
        chosen[field] = float(config[field])
    chosen |= dict(
        preset=config.preset, seed=int(config.seed), seq_len=int(config.seq_len)
    )
    if config.get("gaps", False):
        chosen["gaps"] = True
    for field, value in chosen.items():
        if isinstance(value, int) and value >= 2**63:
            raise UserError(f"data.{field}={value}: a whole number below 2**63")
    if chosen["seq_len"] < 1:
        raise UserError(f"data.seq_len={chosen['seq_len']}: at least 1")
    if chosen["seed"] < 0:
        raise UserError(f"data.seed={chosen['seed']}: 0 or more")
    for field, default in PAPER.items():
        number = type(default) in (int, float)
        if number and not 0 <= chosen[field] < math.inf:  # refuses nan too
            given = chosen[field]
            raise UserError(f"data.{field}={given}: 0 or more, -1 by the preset")
    for field in ("click_reward", "buy_reward"):
        if not math.isfinite(chosen[field]):
            raise UserError(f"data.{field}={chosen[field]}: a finite number")
    if len(config.get("delimiter", "")) > 1:
        raise UserError(f"data.delimiter={config.delimiter!r}: one character")
    return chosen
