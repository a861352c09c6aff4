"""What the registry is told by its environment, read here and nowhere else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from algomesh_services.environment import Variable
from algomesh_services.program_settings import GRACE, NATS, Postgres, ProgramSettings


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the registry's tables.

    A connection presents its key again every `session_s`; a revoked key is cut off at once all the same, where the
    registry has the seed of the server's own account.
    """

    program: ClassVar[str] = "registry"

    nats: Annotated[str, NATS]
    postgres: Postgres = field(repr=False)
    schema: str = "registry"
    session_s: Annotated[
        float,
        Variable("ALGOMESH_SESSION_S", "seconds that a connection lives before it must present its key again"),
        Meta(gt=0, le=366 * 86_400),
    ] = 12 * 3600.0
    archive_limit_bytes: int = 2 * 2**30
    grace_s: Annotated[float, GRACE, Meta(ge=0, le=3_600)] = 5.0

    @property
    def archives(self) -> Path:
        """The directory of archives, each named by its digest."""
        return self.state / "archives"
