"""What the ledger is told by its environment, read here and nowhere else."""

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
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the ledger's table.

    `batch` is how many messages are taken at once at most. While few come, the first waits `linger_s` for others; while
    many do, they gather for `gather_s`, and are shown that much later. Runs older than `keep_days` are deleted,
    `delete_rows` at a time.
    """

    nats: str
    postgres: str
    state: Path
    schema: str = "ledger"
    keep_days: float = 30.0
    grace_s: float = 5.0
    batch: int = 2_000
    linger_s: float = 0.05
    gather_s: float = 0.4
    upkeep_s: float = 60.0
    delete_rows: int = 10_000

    @property
    def secrets(self) -> Path:
        """The directory of secret files."""
        return self.state / "secrets"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read `ALGOMESH_NATS`, `ALGOMESH_POSTGRES`, `ALGOMESH_STATE`, `ALGOMESH_KEEP_DAYS` (30), `ALGOMESH_GRACE_S`.

        Raises BadSetting, naming the variable.
        """
        missing = [name for name in _REQUIRED if not environment.get(name, "").strip()]
        if missing:
            raise BadSetting(f"set {' and '.join(missing)} in the environment of the ledger")
        return cls(
            nats=environment["ALGOMESH_NATS"].strip(),
            postgres=environment["ALGOMESH_POSTGRES"].strip(),
            state=Path(environment["ALGOMESH_STATE"].strip()).absolute(),
            keep_days=_number(environment, "ALGOMESH_KEEP_DAYS", cls.keep_days, most=36_500),
            grace_s=_number(environment, "ALGOMESH_GRACE_S", cls.grace_s, most=3_600),
        )


def _number(environment: Mapping[str, str], name: str, default: float, most: float) -> float:
    text = environment.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise BadSetting(f"{name}={text!r} is not a number") from error
    if not 0 < value <= most:
        raise BadSetting(f"{name}={text!r} is not a number above 0, at most {most:g}")
    return value
