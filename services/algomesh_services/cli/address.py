"""Which mesh a command speaks to, and with which key.

ALGOMESH_URL and ALGOMESH_API_KEY (or ALGOMESH_API_KEY_FILE, a file that holds it) decide. What they do not say is
taken from a mesh that runs on the default state directory (or on ALGOMESH_STATE), so that a second terminal on the
same machine just works; that mesh's key is sent to that mesh only.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from algomesh.errors import Unauthenticated, Unreachable
from algomesh_services.local.running import RunningMesh

_NO_MESH = (
    "no mesh runs here: start one with `algomesh up` in another terminal, "
    "or set ALGOMESH_URL and ALGOMESH_API_KEY to use one elsewhere"
)


class Address(NamedTuple):
    """Where, and as whom."""

    url: str
    key: str

    @property
    def is_nats(self) -> bool:
        """Whether the mesh is reached directly; else through its gateway."""
        return self.url.partition("://")[0] not in ("http", "https")


def find_address(environment: Mapping[str, str] = os.environ) -> Address:
    """The address to use. Raises Unreachable when there is none, Unauthenticated when only the key is missing."""
    url, key = environment.get("ALGOMESH_URL", ""), _key_in(environment).removeprefix("Simple ")
    if url and key:
        return Address(url, key)
    running = RunningMesh.find(find_state(environment))
    if running is None:
        if key:
            raise Unreachable("ALGOMESH_URL is not set, and no mesh runs here; set it, or run `algomesh up`")
        raise Unreachable(_NO_MESH) if not url else Unauthenticated(f"set ALGOMESH_API_KEY to a key of {url}")
    if url and url.rstrip("/") not in (running.nats, running.gateway):
        raise Unauthenticated(f"set ALGOMESH_API_KEY to a key of {url}; the mesh that runs here is another")
    return Address(url or running.nats, key or _key_of(running))


def find_state(environment: Mapping[str, str] = os.environ) -> Path:
    """The state directory that is meant when none is given."""
    from algomesh_services.local.state import default_state_path

    chosen = environment.get("ALGOMESH_STATE", "")
    return Path(chosen).expanduser() if chosen else default_state_path()


def _key_in(environment: Mapping[str, str]) -> str:
    """The key itself, or what is in the file that is named: a container's environment is no place for a secret."""
    key, file = environment.get("ALGOMESH_API_KEY", ""), environment.get("ALGOMESH_API_KEY_FILE", "")
    if key or not file:
        return key
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthenticated(f"ALGOMESH_API_KEY_FILE cannot be read: {error}") from error


def _key_of(running: RunningMesh) -> str:
    try:
        return (Path(running.state) / "secrets" / "admin.key").read_text().strip()
    except OSError as error:
        raise Unauthenticated(
            f"the mesh that runs here keeps its key to itself ({error}); set ALGOMESH_API_KEY"
        ) from error
