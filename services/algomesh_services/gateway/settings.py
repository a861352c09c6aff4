"""What the gateway is told by its environment, read here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from algomesh_services.environment import Variable
from algomesh_services.program_settings import DEFAULT_NATS, GRACE, NATS, ProgramSettings


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """Addresses, places and bounds. Times in seconds; port 0 is any free one, told in `run/gateway.json`.

    `leave_s` is how long a gateway that was told to stop still takes calls while it says that it is not ready, for
    those who share calls out between several; `grace_s` is how long calls under way may then go on.
    `head_s` is how long a connection may take to its first whole request head, `idle_s` how long it may wait
    between two; a body must not pause longer than `body_pause_s` nor take longer than `body_s`.
    `body_bytes` bounds one input, `bodies_bytes` all bodies in memory together. `beat_s` is the silence in a stream
    after which a sign of life is sent. `key_idle_s` is how long the connection of a key that
    nobody uses is kept, `keys` how many there are at most.
    """

    program: ClassVar[str] = "gateway"

    nats: Annotated[str, NATS] = DEFAULT_NATS
    host: Annotated[str, Variable("ALGOMESH_GATEWAY_HOST", "the address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Variable("ALGOMESH_GATEWAY_PORT", "the port to listen on, 0 for any free one"), Meta(ge=0, le=65_535)
    ] = 8080
    grace_s: Annotated[float, GRACE, Meta(ge=0, le=3_600)] = 5.0
    leave_s: Annotated[
        float,
        Variable("ALGOMESH_LEAVE_S", "seconds that it still takes calls once it says that it is not ready"),
        Meta(ge=0, le=3_600),
    ] = 0.0
    head_s: float = 10.0
    idle_s: float = 75.0
    body_pause_s: float = 10.0
    body_s: float = 120.0
    body_bytes: Annotated[
        int, Variable("ALGOMESH_GATEWAY_BODY_BYTES", "the size of the largest input, in bytes"), Meta(ge=1, le=2**30)
    ] = 8 * 2**20 - 4096
    bodies_bytes: int = 512 * 2**20
    beat_s: float = 15.0
    connections: int = 4_096
    keys: int = 1_000
    key_idle_s: float = 300.0
    open_timeout_s: float = 3.0
    detached: int = 1_000

    @property
    def address_file(self) -> Path:
        """Where the gateway says where it listens, once it does."""
        return self.state / "run" / "gateway.json"
