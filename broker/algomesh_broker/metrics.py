"""What every program shows of its place in the mesh: whether its servers answer, and what it is asked."""

from typing import Final

from algomesh_observability.metrics import gauge, histogram

CONNECTED: Final = gauge("algomesh_connected", "1 while the server answers this program, else 0.", ("server",))
REQUEST_SECONDS: Final = histogram(
    "algomesh_request_seconds",
    "Time to answer what this program was asked on NATS, by verb and by ok or the code of an error.",
    ("verb", "code"),
)
