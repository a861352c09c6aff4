"""What the registry shows: its answers to who connects, and whether its server answers. Requests: broker/metrics.py."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from algomesh_broker.connection import Connection
from algomesh_broker.metrics import CONNECTED
from algomesh_observability.metrics import gauge, histogram

if TYPE_CHECKING:
    from algomesh_services.registry.callout import Grants

AUTH_SECONDS: Final = histogram(
    "algomesh_auth_seconds",
    "Time to say what a new connection may do, by its token (key or instance) and the answer (accepted or refused).",
    ("token", "answer"),
)
VERSIONS: Final = gauge("algomesh_registry_versions", "Versions that are published.")


@contextlib.contextmanager
def watch(grants: "Grants", connection: Connection) -> Iterator[None]:
    """Show how things stand with a registry while the block runs."""
    with contextlib.ExitStack() as stack:
        stack.callback(VERSIONS.follow(lambda: {(): float(len(grants))}))
        stack.callback(CONNECTED.follow(lambda: {("nats",): float(connection.is_connected)}))
        yield
