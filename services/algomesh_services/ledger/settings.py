"""What the ledger is told by its environment, read here and nowhere else."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from msgspec import Meta

from algomesh_services.program_settings import GRACE, KEEP_DAYS, NATS, Postgres, ProgramSettings


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the ledger's table.

    `batch` is how many messages are taken at once at most. While few come, the first waits `linger_s` for others; while
    many do, they gather for `gather_s`, and are shown that much later. Runs older than `keep_days` are deleted,
    `delete_rows` at a time.
    """

    program: ClassVar[str] = "ledger"

    nats: Annotated[str, NATS]
    postgres: Postgres = field(repr=False)
    schema: str = "ledger"
    keep_days: Annotated[float, KEEP_DAYS, Meta(gt=0, le=36_500)] = 30.0
    grace_s: Annotated[float, GRACE, Meta(gt=0, le=3_600)] = 5.0
    batch: int = 2_000
    linger_s: float = 0.05
    gather_s: float = 0.4
    upkeep_s: float = 60.0
    delete_rows: int = 10_000
