"""What the registry is told by its environment, read here and nowhere else."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_REQUIRED = ("ALGOMESH_NATS", "ALGOMESH_POSTGRES", "ALGOMESH_STATE")


class MissingSetting(ValueError):
    """A variable that the registry cannot do without is not set."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the registry's tables.

    `session_s` is how long a connection lives before it must present its key again; a revoked key is
    cut off at once all the same, where the registry has the seed of the server's own account.
    """

    nats: str
    postgres: str
    state: Path
    schema: str = "registry"
    session_s: float = 12 * 3600.0
    archive_limit_bytes: int = 2 * 2**30
    grace_s: float = 5.0

    @property
    def secrets(self) -> Path:
        """The directory of secret files."""
        return self.state / "secrets"

    @property
    def archives(self) -> Path:
        """The directory of archives, each named by its digest."""
        return self.state / "archives"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read `ALGOMESH_*`. Raises MissingSetting, naming what is missing; ValueError for a bad number."""
        missing = [name for name in _REQUIRED if not environment.get(name)]
        if missing:
            raise MissingSetting(f"set {' and '.join(missing)} in the environment of the registry")
        return cls(
            nats=environment["ALGOMESH_NATS"],
            postgres=environment["ALGOMESH_POSTGRES"],
            state=Path(environment["ALGOMESH_STATE"]),
            session_s=float(environment.get("ALGOMESH_SESSION_S", cls.session_s)),
            grace_s=float(environment.get("ALGOMESH_GRACE_S", cls.grace_s)),
        )
