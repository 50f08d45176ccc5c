"""Scenarios and settings of Battle City: names, defaults, difficulty, validation.

`make` of the package takes a scenario by name and any setting besides. Every number
here is ours; the paper's environment of the same name is described only as novel and
flexible.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrec.envs.battle_city import maps
from jaxrec.types import UserError

MODES = ("defend", "annihilate", "assault")
FRIENDLY = ("off", "stun", "damage")
BASIC, FAST, POWER, ARMOR = range(4)
HP = (1, 1, 1, 4)  # of basic, fast, power, armor

SCENARIOS = {
    "2t_vs_4e_open7": dict(map="open7", agents=2, enemies=4),
    "3t_vs_6e_bricks": dict(map="bricks13", agents=3, enemies=6),
    "3t_vs_8e_fortress": dict(map="fortress13", agents=3, enemies=8),
    "3t_vs_8e_ice": dict(map="ice13", agents=3, enemies=8, ice=True),
    "4t_vs_10e_river": dict(map="river13", agents=4, enemies=10),
    "4t_vs_12e_forest": dict(map="forest13", agents=4, enemies=12),
    "5t_vs_20e_random": dict(map="random13", agents=5, enemies=20, limit=400),
    "3t_vs_3t_annihilate": dict(
        map="arena9", agents=3, enemies=3, mode="annihilate", mix=(0, 1, 0, 0)
    ),
    # Bush hides whom nobody stands beside, and there is no base to wait at.
    "3t_vs_3t_thicket": dict(
        map="thicket9",
        agents=3,
        enemies=3,
        mode="annihilate",
        mix=(0, 1, 0, 0),
        radius=2,
        limit=40,
        hunt_prob=0.0,
    ),
    "3t_vs_8e_assault": dict(map="twin13", agents=3, enemies=8, mode="assault"),
}
# Chances of the scripted enemies, and the shares of basic, fast, power and armor.
DIFFICULTIES = {
    "easy": dict(
        aim_prob=0.5, move_prob=0.75, base_prob=0.25, hunt_prob=0.15, brick_prob=0.5,
        mix=(1.0, 0.0, 0.0, 0.0),
    ),
    "medium": dict(
        aim_prob=0.8, move_prob=0.75, base_prob=0.4, hunt_prob=0.3, brick_prob=0.5,
        mix=(0.55, 0.2, 0.1, 0.15),
    ),
    "hard": dict(
        aim_prob=0.95, move_prob=0.75, base_prob=0.45, hunt_prob=0.4, brick_prob=0.7,
        mix=(0.25, 0.25, 0.25, 0.25),
    ),
}  # fmt: skip


class Settings(NamedTuple):
    """What stays fixed in a game. Counts are of tanks, times of environment steps."""

    map: Any = "open7"  # a built-in name, a path; a Map once it is loaded
    mode: str = "defend"  # a base to keep; "annihilate": none; "assault": two
    agents: int = 2
    enemies: int = 4  # in all
    on_field: int = 0  # enemies at a time; 0: 4 for one agent, else 6
    difficulty: str = "medium"
    limit: int = 200  # steps of an episode
    # The agents' view.
    radius: int = 3  # window of 2 radius + 1 cells a side
    line_of_sight: bool = False  # brick and steel hide enemies behind them
    observation: str = "flat"  # or "entity"
    # Shots.
    bullet_speed: int = 2  # tiles a step; 3 for enemies of kind power
    reload: int = 3
    friendly_fire: str = "stun"
    stun: int = 5
    brick_hp: int = 1
    agent_power: int = 1  # 3 and more break steel
    agent_hp: int = 1
    # Ground and lives.
    ice: bool = False  # tanks slide
    lives: int = 1
    respawn_delay: int = 10  # of agents with lives left
    spawn_delay: int = 5  # of enemies
    # The scripted enemies.
    aim_prob: float = 0.8  # to fire at an agent or base in line ahead
    move_prob: float = 0.75  # to keep the direction
    base_prob: float = 0.4  # else to turn to the base
    hunt_prob: float = 0.3  # or to the nearest agent that they see, or anywhere
    brick_prob: float = 0.5  # to fire at a brick that blocks the way
    mix: tuple[float, ...] = (0.55, 0.2, 0.1, 0.15)  # shares of the four kinds
    # Rewards, shared by the team; a perfect episode returns 20.
    sparse: bool = False  # 1 for a win, 0 otherwise
    base_penalty: float = 0.0  # for the own base destroyed, a positive number
    death_penalty: float = 0.0  # for each agent lost

    @property
    def slots(self) -> int:
        """E, enemy tanks at a time."""
        return self.enemies if self.mode == "annihilate" else self.on_field

    @property
    def tanks(self) -> int:
        """M = A + E: the agents first."""
        return self.agents + self.slots


HPARAMS = dict(scenario="2t_vs_4e_open7") | dict(zip(Settings._fields, Settings()))
LEAST = dict(agents=1, enemies=1, limit=1, radius=1, bullet_speed=1, reload=1, stun=1)
LEAST |= dict(brick_hp=1, agent_power=1, agent_hp=1, lives=1, on_field=0)
LEAST |= dict(spawn_delay=1, respawn_delay=1, base_penalty=0, death_penalty=0)
# Bounds keep counters in int8 and tanks in the bits of one word.
MOST = dict(agents=10, on_field=16, bullet_speed=4, reload=100, stun=100, brick_hp=4)
MOST |= dict(agent_hp=100, lives=100, spawn_delay=100, respawn_delay=100, radius=15)
CHOICES = dict(
    mode=MODES,
    difficulty=tuple(DIFFICULTIES),
    friendly_fire=FRIENDLY,
    observation=("flat", "entity"),
)


def settings(config: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a game, from the defaults up: difficulty, scenario, `config`.

    Raises UserError for unknown names, impossible numbers and maps that do not fit.
    """
    given = dict(config or {})
    if unknown := sorted(set(given) - set(HPARAMS)):
        near = difflib.get_close_matches(unknown[0], HPARAMS, 3, 0.4) or HPARAMS
        raise UserError(f"battle_city has no {unknown[0]!r}: use {' or '.join(near)}")
    name = given.pop("scenario", HPARAMS["scenario"])
    if name not in SCENARIOS:
        near = difflib.get_close_matches(str(name), SCENARIOS, 3, 0.4)
        raise UserError(
            f"battle_city has no scenario {name!r}: did you mean "
            f"{' or '.join(near or SCENARIOS)}?"
        )
    chosen = SCENARIOS[name] | given
    level = chosen.get("difficulty", "medium")
    values = DIFFICULTIES.get(level, {}) | chosen
    check(values)
    values["mix"] = tuple(float(share) for share in values["mix"])
    found = Settings(**values)
    on_field = found.on_field or (4 if found.agents == 1 else 6)
    found = found._replace(on_field=min(on_field, found.enemies))
    if found.mode == "annihilate" and found.enemies > MOST["on_field"]:
        raise UserError(
            f"battle_city.enemies={found.enemies}: in mode 'annihilate' all are on the "
            f"field, let it be {MOST['on_field']} or less"
        )
    if found.mode == "annihilate" and found.lives > 1:
        raise UserError(
            f"battle_city.lives={found.lives}: nobody comes back in mode 'annihilate', "
            "let it be 1"
        )
    world = maps.load(str(found.map), found.mode, found.agents, found.enemies)
    return found._replace(map=world)


def check(values: Mapping[str, Any]) -> None:
    """Raises UserError for a value that no game can have."""
    for name, choices in CHOICES.items():
        value = values.get(name, HPARAMS[name])
        if value not in choices:
            raise UserError(
                f"battle_city.{name}={value!r}: use one of {', '.join(choices)}"
            )
    for name, value in values.items():
        if name in LEAST and not (
            _number(value, HPARAMS[name])
            and LEAST[name] <= value <= MOST.get(name, 1e9)
        ):
            upper = f" to {MOST[name]}" if name in MOST else " or more"
            raise UserError(
                f"battle_city.{name}={value!r}: it must be {LEAST[name]}{upper}"
            )
        if isinstance(HPARAMS[name], bool) and not isinstance(value, bool):
            raise UserError(f"battle_city.{name}={value!r}: use true or false")
        if name.endswith("_prob") and not (_number(value, 0.5) and 0 <= value <= 1):
            raise UserError(f"battle_city.{name}={value!r}: it must be in [0, 1]")
    if values["base_prob"] + values["hunt_prob"] > 1 + 1e-9:
        raise UserError(
            f"battle_city.base_prob={values['base_prob']} and hunt_prob="
            f"{values['hunt_prob']} are chances of one choice: let their sum be 1 or "
            "less"
        )
    mix = values["mix"]
    shares = isinstance(mix, (tuple, list)) and len(mix) == 4
    shares = shares and all(_number(share, 0.5) and share >= 0 for share in mix)
    if not shares or abs(sum(mix) - 1) > 1e-6:
        raise UserError(
            f"battle_city.mix={mix!r}: four shares (basic, fast, power, armor) that "
            "sum to 1, such as mix=0.25/0.25/0.25/0.25"
        )


def _number(value: Any, like: Any) -> bool:
    """A whole number where the default is one; True and False are none."""
    kinds = int if isinstance(like, int) else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool)
