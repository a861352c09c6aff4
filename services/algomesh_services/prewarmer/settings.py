"""What the pre-warmer is told by its environment, read here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, TypeAlias

from msgspec import Meta

from algomesh_services.environment import Variable
from algomesh_services.program_settings import GRACE, KEEP_DAYS, NATS, Postgres, ProgramSettings

_Worth: TypeAlias = Annotated[float, Meta(ge=0, le=1e6)]


def _by_caller(text: str) -> dict[str, str]:
    """What is said of each caller, from `k~abc=30,text/clean=1`. Raises ValueError."""
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        caller, equals, said = (each.strip() for each in part.partition("="))
        caller = caller.lower().replace("/", "~")
        if not equals or caller.count("~") != 1 or not all(caller.split("~")):
            raise ValueError(f"{part!r} is not CALLER=NUMBER, like k~abc=30 or text/clean=1")
        found[caller] = said
    return found


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """Addresses, places and bounds. `schema` is the PostgreSQL schema that holds the pre-warmer's tables.

    `latency_value` is what a second of a caller's latency is worth in seconds of a held GPU, where an algorithm does
    not say it itself; 0 leaves all of these alone. `latency_values` are what it is worth for requests of one caller, a
    key (`k~ID`) or an algorithm (`owner~name`): they count more than either. Statistics are kept every `snapshot_s`,
    starts for `keep_days`.
    """

    program: ClassVar[str] = "prewarmer"

    nats: Annotated[str, NATS]
    postgres: Postgres = field(repr=False)
    schema: str = "prewarmer"
    latency_value: Annotated[
        _Worth, Variable("ALGOMESH_LATENCY_VALUE", "what a second of waiting is worth in seconds of a held GPU")
    ] = 5.0
    latency_values: Annotated[
        Mapping[str, _Worth], Variable("ALGOMESH_LATENCY_VALUES", "the same by caller, CALLER=NUMBER,…", _by_caller)
    ] = field(default_factory=dict)
    keep_days: Annotated[float, KEEP_DAYS, Meta(gt=0, le=36_500)] = 30.0
    grace_s: Annotated[float, GRACE, Meta(gt=0, le=3_600)] = 5.0
    snapshot_s: float = 60.0
    write_s: float = 1.0
