"""Small sessions with a pattern to learn, as a recommender's Dataset."""

import numpy as np

from jaxrec.types import Dataset

NUM_ITEMS, VOCAB, SEQ_LEN = 20, 128, 5


def events(num_sessions, seed=0):
    """Walks on a ring of items, one or two ahead; multiples of five are purchases."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 12, num_sessions)
    columns = {name: [] for name in ("item", "timestep", "remaining")}
    for length in lengths:
        steps = generator.integers(1, 3, length)
        items = (generator.integers(NUM_ITEMS) + np.cumsum(steps)) % NUM_ITEMS + 1
        columns["item"].append(items)
        columns["timestep"].append(np.arange(length))
        columns["remaining"].append(np.arange(length)[::-1])
    arrays = {k: np.concatenate(v).astype(np.int32) for k, v in columns.items()}
    last = arrays["remaining"] == 0
    kind = (arrays["item"] % 5 == 0).astype(np.int32)
    reward = np.where(kind == 1, 1.0, 0.2).astype(np.float32)
    total = np.cumsum(reward[::-1])[::-1]
    after = np.append(total[1:], 0.0)[np.flatnonzero(last)]
    return arrays | dict(
        kind=kind,
        reward=reward,
        next_item=np.where(last, 0, np.append(arrays["item"][1:], 0)).astype(np.int32),
        done=last.astype(np.float32),
        reward_to_go=(total - np.repeat(after, lengths)).astype(np.float32),
    )


def dataset(num_sessions=200):
    train, valid = events(num_sessions), events(30, seed=1)
    count = np.bincount(train["item"], minlength=VOCAB).astype(np.float64)
    by_step = [
        train["reward_to_go"][train["timestep"] == t].mean()
        for t in range(train["timestep"].max() + 1)
    ]
    info = dict(
        num_items=NUM_ITEMS,
        vocab=VOCAB,
        seq_len=SEQ_LEN,
        name="toy/sessions",
        version="1",
        num_rows=len(train["item"]),
        num_sessions=num_sessions,
        item_count=count,
        mean_return=np.array(by_step, np.float32),
        kinds=("click", "purchase"),
        rewards=(0.2, 1.0),
        mask_seen=False,
        protocol={},
        attributes=(np.arange(VOCAB)[:, None] % 4 == np.arange(4)[None]),
        titles=None,
        train=train,
    )
    return Dataset(train, {"valid": valid}, info, SEQ_LEN + 1)
