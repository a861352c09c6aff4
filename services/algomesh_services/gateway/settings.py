"""What the gateway is told by its environment, read here and nowhere else."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEFAULT_NATS = "nats://127.0.0.1:4222"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_BODY_BYTES = 8 * 2**20 - 4096


class BadSetting(ValueError):
    """A variable of the environment is missing or not what it should be; the sentence names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses, places and bounds. Times in seconds; port 0 is any free one, told in `run/gateway.json`.

    `leave_s` is how long a gateway that was told to stop still takes calls while it says that it is not ready, for
    those who share calls out between several; `grace_s` is how long calls under way may then go on.
    `head_s` is how long a connection may take to its first whole request head, `idle_s` how long it may wait
    between two; a body must not pause longer than `body_pause_s` nor take longer than `body_s`.
    `body_bytes` bounds one input, `bodies_bytes` all bodies in memory together. `beat_s` is the silence in a stream
    after which a sign of life is sent. `key_idle_s` is how long the connection of a key that
    nobody uses is kept, `keys` how many there are at most.
    """

    nats: str
    state: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    grace_s: float = 5.0
    leave_s: float = 0.0
    head_s: float = 10.0
    idle_s: float = 75.0
    body_pause_s: float = 10.0
    body_s: float = 120.0
    body_bytes: int = DEFAULT_BODY_BYTES
    bodies_bytes: int = 512 * 2**20
    beat_s: float = 15.0
    connections: int = 4_096
    keys: int = 1_000
    key_idle_s: float = 300.0
    open_timeout_s: float = 3.0
    detached: int = 1_000

    @property
    def secrets(self) -> Path:
        """The directory of secret files."""
        return self.state / "secrets"

    @property
    def address_file(self) -> Path:
        """Where the gateway says where it listens, once it does."""
        return self.state / "run" / "gateway.json"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read `ALGOMESH_NATS`, `…_STATE`, `…_GRACE_S`, `…_LEAVE_S`,
        `ALGOMESH_GATEWAY_HOST`, `…_PORT` and `…_BODY_BYTES`.

        Raises BadSetting, naming the variable.
        """
        state = environment.get("ALGOMESH_STATE", "").strip()
        if not state:
            raise BadSetting("set ALGOMESH_STATE to the state directory of the mesh")
        return cls(
            nats=environment.get("ALGOMESH_NATS", "").strip() or DEFAULT_NATS,
            state=Path(state).absolute(),
            host=environment.get("ALGOMESH_GATEWAY_HOST", "").strip() or DEFAULT_HOST,
            port=_port(environment.get("ALGOMESH_GATEWAY_PORT", "").strip()),
            body_bytes=_size(environment.get("ALGOMESH_GATEWAY_BODY_BYTES", "").strip()),
            grace_s=_seconds("ALGOMESH_GRACE_S", environment.get("ALGOMESH_GRACE_S", "").strip(), cls.grace_s),
            leave_s=_seconds("ALGOMESH_LEAVE_S", environment.get("ALGOMESH_LEAVE_S", "").strip(), cls.leave_s),
        )


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise BadSetting(f"ALGOMESH_GATEWAY_PORT={text!r} is not a port; write 0 (any free one) to 65535")
    return int(text)


def _size(text: str) -> int:
    if not text:
        return DEFAULT_BODY_BYTES
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 2**30):
        raise BadSetting(f"ALGOMESH_GATEWAY_BODY_BYTES={text!r} is not a number of bytes from 1 to 1 GiB")
    return int(text)


def _seconds(name: str, text: str, default: float) -> float:
    try:
        seconds = float(text) if text else default
    except ValueError as error:
        raise BadSetting(f"{name}={text!r} is not a number of seconds") from error
    if not 0 <= seconds <= 3600:
        raise BadSetting(f"{name}={text!r} is not a number of seconds from 0 to 3600")
    return seconds
