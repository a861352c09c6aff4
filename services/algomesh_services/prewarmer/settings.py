"""What the pre-warmer is told by its environment, read here and nowhere else."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_REQUIRED = ("ALGOMESH_NATS", "ALGOMESH_POSTGRES", "ALGOMESH_STATE")


class BadSetting(ValueError):
    """A variable of the environment is missing or not what it should be; the sentence names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the pre-warmer's tables.

    `latency_value` is what a second of a caller's latency is worth in seconds of a held GPU, where an algorithm does
    not say it itself; 0 leaves all of these alone. Statistics are kept every `snapshot_s`, starts for `keep_days`.
    """

    nats: str
    postgres: str
    state: Path
    schema: str = "prewarmer"
    latency_value: float = 5.0
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
        """Read `ALGOMESH_NATS`, `ALGOMESH_POSTGRES`, `ALGOMESH_STATE`, `ALGOMESH_LATENCY_VALUE` (5), `ALGOMESH_GRACE_S`
        and `ALGOMESH_KEEP_DAYS` (30).

        Raises BadSetting, naming the variable.
        """
        missing = [name for name in _REQUIRED if not environment.get(name, "").strip()]
        if missing:
            raise BadSetting(f"set {' and '.join(missing)} in the environment of the prewarmer")
        return cls(
            nats=environment["ALGOMESH_NATS"].strip(),
            postgres=environment["ALGOMESH_POSTGRES"].strip(),
            state=Path(environment["ALGOMESH_STATE"].strip()).absolute(),
            latency_value=_number(environment, "ALGOMESH_LATENCY_VALUE", cls.latency_value, most=1e6, or_zero=True),
            keep_days=_number(environment, "ALGOMESH_KEEP_DAYS", cls.keep_days, most=36_500),
            grace_s=_number(environment, "ALGOMESH_GRACE_S", cls.grace_s, most=3_600),
        )


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
