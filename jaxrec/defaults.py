"""The fields that every experiment has, with their defaults; configs/ fills them.

A config is a ConfigDict with the fields of `run`, one section for each name in
`stages`, and inside a stage one section of hyper-parameters for each method that
`--config.<stage>.method` may name. Sections of methods that are not chosen are dropped
when the run starts, so `config.json` shows what was used.
"""

import copy
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

OFFLINE_RL_DATA = dict(
    source="gym",  # gym, d4rl, hdf5, minari, npz, toy: see jaxrec.data.sources
    name="Hopper-v4/medium-replay",  # which set of the source
    path="",  # hdf5, npz: the file, or a folder of .npy files
    env_id="",  # simulator to evaluate in; "" = as the source says
    rows=100_000,  # gym, toy: transitions to collect
    seed=0,  # gym, toy: seed of the collection
    time_limit=0,  # files: an end at this step is a timeout; 0 = the simulator's limit
    clip_actions=False,  # files: clip recorded actions to [-1, 1] instead of refusing
    data_dir="",  # cache; "" = $JAXREC_DATA or ~/.cache/jaxrec
)

OFFLINE_RL_VIEW = dict(
    window=0,  # K > 0: windows of K steps instead of transitions
    valid_fraction=0.0,  # share of the episodes that is held out
    top=1.0,  # keep this share of the episodes, best returns first
)


# Fields at -1 or "" are decided by the preset of the source: see data.presets.
RECOMMENDER_DATA = dict(
    source="simulated",  # see jaxrec.data.sources
    name="",  # which set of the source
    path="",  # files: one, or their folder; tfds: the directory of the builders
    columns=dict(session="", user="", item="", time="", event="", rating=""),  # table
    delimiter="",  # table, gru4rec: between columns, "" = by the file's name
    purchase="purchase,buy,addtocart,transaction",  # table: events that are purchases
    ignore="",  # table: events that are left out
    hash_items=0,  # files: hash the ids of items to that many, 0 = off
    buy_rating=5.0,  # a rating of at least this counts as a purchase
    preset="recommended",  # or "paper": the protocol of the SQN papers
    seq_len=10,  # L, events that a state is made of; SQN papers
    click_reward=0.2,  # SQN code
    buy_reward=1.0,  # SQN code
    split="",  # random_session, temporal_quantile, last_days, leave_one_out, pre_split
    valid=0.1,  # share of the sessions
    test=0.1,
    test_days=-1.0,  # last_days: length of the test set and of the one before
    session_by="",  # session or user
    session_gap=-1.0,  # minutes that end a session, 0 = none
    session_chunk=-1,  # events that end a session, 0 = none
    sample_sessions=-1,  # keep a sample of this size, 0 = all
    min_clicks=-1,  # fewest clicks of a session
    min_session=-1,  # fewest events of a session
    min_item=-1,  # fewest events of an item
    iterate=-1,  # 1: until both minima hold
    score_first_event=-1,  # 1: predict it, from an empty history
    drop_unseen_items=-1,  # 1: from the held-out sets
    mask_seen=-1,  # 1: never recommend an item of the history
    num_users=20_000,  # simulated: who writes the log
    mode="sessions",  # simulated: or "tabular"
    horizon=0,  # simulated: items that a user looks at, at most; 0 = 50
    # simulated: overrides of envs.users.HPARAMS, "num_items=40,world=3" or a dict
    users=FieldReference({}, field_type=object),
    seed=0,  # of the split and of the simulated users
    data_dir="",  # cache; "" = $JAXREC_DATA or ~/.cache/jaxrec
)

RECOMMENDER_VIEW = dict()  # stages see the whole of it

# Of methods that learn from whole histories: see data.packing.
HISTORY_VIEW = dict(
    examples="packed",  # or users, events
    gaps=False,  # True: with the seconds between events, for encoder.gaps
)

# Fields of methods by the config's argument; the rest of HPARAMS is the authors' code.
PRESETS = dict(
    paper=dict(),
    recommended=dict(target_dropout=False, loss_weight="immediate"),  # ours
)

# Games of teams; there is nothing to read.
TEAM_DATA = dict(
    source="battle_city",  # battle_city, meeting (a toy), smax, mpe
    name="2t_vs_4e_open7",  # which game of it
    # what is not as the game says: "radius=2,difficulty=hard" or a dict
    settings=FieldReference({}, field_type=object),
)


def run(
    name: str,
    stages: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    **fields,
) -> ConfigDict:
    """The config of an experiment whose stages run in the order given."""
    config = dict(
        name=name,
        seed=0,
        num_seeds=1,  # > 1: seeds seed, seed + 1, ... in one program
        stages=tuple(stages),
        data=dict(data),
        eval=dict(
            episodes=10,  # deterministic episodes in the simulator
            seed=100,  # of the simulator's first states
            batch_size=512,  # held-out rows a call
            fqe_steps=2_000,  # updates of fitted Q evaluation
            users=2_000,  # simulated users that a recommender serves
            horizon=50,  # items that a simulated user looks at, at most
        ),
        headline="eval/normalized_score",  # the metric beside the progress bar
        select="",  # validation metric that picks the step to report beside the last
        mesh=dict(data=-1, model=1, time=1),  # -1: all devices
        profile=dict(steps=0),  # updates to trace, 0 = none: see jaxrec.profiling
        rules=(),  # ((pattern, axes), ...), items, fsdp: see jaxrec.rules
        device_data_limit=1 << 30,  # bytes; larger sets are streamed from files
        **{stage: dict(section) for stage, section in stages.items()},
    )
    unknown = set(fields) - set(config)
    if unknown:
        raise ValueError(f"unknown config fields {sorted(unknown)}")
    return ConfigDict(copy.deepcopy(config | fields))


def stage(
    method: str,
    hparams: Mapping[str, Mapping[str, Any]],
    steps: int,
    *,
    view: Mapping[str, Any] = OFFLINE_RL_VIEW,
    **fields: Any,
) -> dict[str, Any]:
    """A stage that runs `method`; `hparams` has a section for each method allowed."""
    section = dict(
        method=method,
        steps=steps,
        batch_size=256,
        log_every=1_000,
        eval_every=5_000,  # 0 = only at the end
        checkpoint_every=5_000,  # 0 = only at the end
        steps_per_call=100,  # updates between two looks at signals and metrics
        evals=(),  # names in jaxrec.evaluators.EVALS
        uses=(),  # earlier stages whose states the method needs
        mix=dict(stage="", fraction=0.0),  # rows of an earlier stage's artefact
        warm_start=dict(path="", pattern=""),  # parameters of another run: jaxrec.warm
        data=dict(view),
    )
    if any("encoder" in section_of for section_of in hparams.values()):
        section["encoder"] = ""  # short for <method>.encoder.name
    unknown = set(fields) - set(section)
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)} of stage {method}")
    return section | fields | {name: dict(h) for name, h in hparams.items()}


def offline_rl(
    method: str, hparams: Mapping[str, Any], arg: str, name: str = "", **fields: Any
) -> ConfigDict:
    """A one-stage experiment of an offline-RL method; `arg` is "" or "smoke"."""
    section = stage(
        method, {method: hparams}, **dict(steps=50_000, evals=("simulator",)) | fields
    )
    return shortened(run(name or method, {"train": section}, OFFLINE_RL_DATA), arg)


def team(
    method: str,
    hparams: Mapping[str, Mapping[str, Any]],
    arg: str,
    name: str = "",
    **fields: Any,
) -> ConfigDict:
    """A one-stage experiment of a team that learns by playing.

    `hparams`: a section for each method that `train.method` may name. One train step is
    a roll-out of all games and the gradient steps on it.
    """
    settings = dict(
        steps=1_000,
        batch_size=32,  # chunks of a gradient step
        log_every=20,
        eval_every=100,
        checkpoint_every=100,
        steps_per_call=10,
        evals=("episodes",),
        view={},
    )
    section = stage(method, hparams, **settings | fields)
    config = run(
        name or method, {"train": section}, TEAM_DATA, headline="eval/win_rate"
    )
    config.eval.episodes = 128
    if arg == "smoke":
        config.eval.episodes = 16
        for section in hparams:
            small = dict(num_envs=8, chunk=8, replay=64, width=16)
            mine = config.train[section]
            mine.update({k: v for k, v in small.items() if k in mine})
        config.train.steps = 40
    return shortened(config, arg)


def recommender(
    method: str, hparams: Mapping[str, Any], arg: str, name: str = "", **fields: Any
) -> ConfigDict:
    """A one-stage experiment of a recommender; `arg`: see `recommender_run`."""
    section = recommender_stage(method, {method: hparams}, **fields)
    return recommender_run(name or method, {"train": section}, arg)


def recommender_stage(
    method: str, hparams: Mapping[str, Mapping[str, Any]], **fields: Any
) -> dict[str, Any]:
    """A stage that trains a recommender and ranks the held-out events."""
    settings = dict(
        steps=20_000,
        log_every=500,
        eval_every=2_000,  # SQN paper
        checkpoint_every=2_000,
        steps_per_call=50,
        evals=("ranking", "users"),
        view=RECOMMENDER_VIEW,
    )
    return stage(method, hparams, **settings | fields)


def recommender_run(
    name: str, stages: Mapping[str, Mapping[str, Any]], arg: str
) -> ConfigDict:
    """An experiment on sessions of items.

    `arg`: "", the methods of the authors' code by our protocol of evaluation; "paper",
    their protocol too, at the last update; "recommended", methods as well with what we
    would change; "smoke".
    """
    config = run(
        name,
        stages,
        RECOMMENDER_DATA,
        headline="valid/ndcg@10",
        select="valid/ndcg@10",
    )
    if arg not in ("", "smoke", *PRESETS):
        known = ", ".join(("smoke", *PRESETS))
        raise ValueError(f"config argument {arg!r} is unknown: use one of {known}")
    if arg not in PRESETS:
        return shortened(config, arg)
    config.name += f"_{arg}"
    config.data.preset = arg
    if arg == "paper":
        config.select = ""
    for stage_name in stages:
        section = config[stage_name][config[stage_name].method]
        section.update({k: v for k, v in PRESETS[arg].items() if k in section})
    return config


def shortened(config: ConfigDict, arg: str) -> ConfigDict:
    """For `arg` "smoke" the same path in under a minute on a CPU; numbers mean nothing.

    Raises ValueError for another argument.
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"config argument {arg!r} is unknown: there is only smoke")
    if arg == "smoke":
        config.name += "_smoke"
        small = dict(rows=4_000, num_users=600)
        config.data.update({k: v for k, v in small.items() if k in config.data})
        config.eval.users = 100
        config.eval.episodes = 2
        config.eval.fqe_steps = 100
        for name in config.stages:
            section = config[name]
            section.steps = min(section.steps, 200)
            section.log_every = section.eval_every = section.checkpoint_every = 100
            section.steps_per_call = 50
            section.batch_size = min(section.batch_size, 64)
    return config
