"""What the pre-warmer is told by its environment, read here and nowhere else."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_MOST_VALUE = 1e6
_REQUIRED = ("ALGOMESH_NATS", "ALGOMESH_POSTGRES", "ALGOMESH_STATE")


class BadSetting(ValueError):
    """A variable of the environment is missing or not what it should be; the sentence names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the pre-warmer's tables.

    `latency_value` is what a second of a caller's latency is worth in seconds of a held GPU, where an algorithm does
    not say it itself; 0 leaves all of these alone. `latency_values` are what it is worth for requests of one caller, a
    key (`k~ID`) or an algorithm (`owner~name`): they count more than either. Statistics are kept every `snapshot_s`,
    starts for `keep_days`.
    """

    nats: str
    postgres: str
    state: Path
    schema: str = "prewarmer"
    latency_value: float = 5.0
    latency_values: Mapping[str, float] = field(default_factory=dict)
    keep_days: float = 30.0
    grace_s: float = 5.0
    snapshot_s: float = 60.0
    write_s: float = 1.0

    @property
    def secrets(self) -> Path:
        """The directory of secret files."""
        return self.state / "secrets"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read `ALGOMESH_NATS`, `ALGOMESH_POSTGRES`, `ALGOMESH_STATE`, `ALGOMESH_LATENCY_VALUE` (5),
        `ALGOMESH_LATENCY_VALUES` (`k~abc=30,text/clean=1`), `ALGOMESH_GRACE_S` and `ALGOMESH_KEEP_DAYS` (30).

        Raises BadSetting, naming the variable.
        """
        missing = [name for name in _REQUIRED if not environment.get(name, "").strip()]
        if missing:
            raise BadSetting(f"set {' and '.join(missing)} in the environment of the prewarmer")
        return cls(
            nats=environment["ALGOMESH_NATS"].strip(),
            postgres=environment["ALGOMESH_POSTGRES"].strip(),
            state=Path(environment["ALGOMESH_STATE"].strip()).absolute(),
            latency_value=_number(
                environment, "ALGOMESH_LATENCY_VALUE", cls.latency_value, most=_MOST_VALUE, or_zero=True
            ),
            latency_values=_by_caller(environment, "ALGOMESH_LATENCY_VALUES"),
            keep_days=_number(environment, "ALGOMESH_KEEP_DAYS", cls.keep_days, most=36_500),
            grace_s=_number(environment, "ALGOMESH_GRACE_S", cls.grace_s, most=3_600),
        )


def _by_caller(environment: Mapping[str, str], name: str) -> dict[str, float]:
    """Numbers by caller, from `k~abc=30,text/clean=1`."""
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, environment.get(name, "").split(","))):
        caller, equals, text = (each.strip() for each in part.partition("="))
        caller = caller.lower().replace("/", "~")
        if not equals or caller.count("~") != 1 or not all(caller.split("~")):
            raise BadSetting(f"{name}: {part!r} is not CALLER=NUMBER, like k~abc=30 or text/clean=1")
        found[caller] = _number({name: text or "nothing"}, name, 0.0, most=_MOST_VALUE, or_zero=True)
    return found


def _number(environment: Mapping[str, str], name: str, default: float, *, most: float, or_zero: bool = False) -> float:
    text = environment.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise BadSetting(f"{name}={text!r} is not a number") from error
    if not (0 < value <= most or (or_zero and value == 0)):
        least = "from 0 on" if or_zero else "above 0"
        raise BadSetting(f"{name}={text!r} is not a number {least}, at most {most:g}")
    return value
