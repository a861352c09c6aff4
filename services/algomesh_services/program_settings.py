"""What every program of the mesh is told: the settings that the `settings.py` of several programs have in common."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Self, TypeAlias

from algomesh_services.environment import Variable, read

NATS: Final = Variable("ALGOMESH_NATS", "the address of NATS, nats://HOST:PORT")
DEFAULT_NATS: Final = "nats://127.0.0.1:4222"
GRACE: Final = Variable("ALGOMESH_GRACE_S", "seconds that what is under way may go on once the program is told to stop")
KEEP_DAYS: Final = Variable("ALGOMESH_KEEP_DAYS", "days after which records are deleted")
Postgres: TypeAlias = Annotated[
    str, Variable("ALGOMESH_POSTGRES", "the DSN of PostgreSQL, postgresql://USER@HOST/DATABASE", is_secret=True)
]


@dataclass(frozen=True, kw_only=True)
class ProgramSettings:
    """The settings of the program `program`; those that no variable is named for are constants but in tests."""

    program: ClassVar[str]

    state: Annotated[Path, Variable("ALGOMESH_STATE", "the state directory of the mesh")]

    @property
    def secrets(self) -> Path:
        """The directory of secret files."""
        return self.state / "secrets"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As the environment has them. Raises BadSetting, naming the variables that are missing or wrong."""
        return read(cls, environment, program=cls.program)
