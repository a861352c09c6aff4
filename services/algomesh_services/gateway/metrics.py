"""What the gateway shows: HTTP requests by route and status, those under way, and the connections of keys."""

import contextlib
from collections.abc import Iterator
from typing import Final

from structlog.contextvars import get_contextvars

from algomesh_broker.metrics import CONNECTED
from algomesh_observability.metrics import counter, gauge, histogram
from algomesh_services.gateway.guard import Guard
from algomesh_services.gateway.keys import KeyPool
from algomesh_services.gateway.link import Link

HTTP_REQUESTS: Final = counter(
    "algomesh_http_requests_total",
    "HTTP requests, by route, method and status; 0 where the client had gone.",
    ("route", "method", "status"),
)
HTTP_SECONDS: Final = histogram(
    "algomesh_http_request_seconds", "From a request's head until its answer's end.", ("route",)
)
IN_FLIGHT: Final = gauge("algomesh_http_requests_in_flight", "HTTP requests that are being answered.")
KEYS: Final = gauge("algomesh_gateway_keys", "API keys whose connection is open.")


def served(route: str, method: str, status: int, took_s: float) -> None:
    """A request was answered. Its run, where the handler bound one, is the exemplar."""
    HTTP_REQUESTS.add(1, route, method, str(status))
    HTTP_SECONDS.observe(took_s, route, trace_id=str(get_contextvars().get("run", "")))


@contextlib.contextmanager
def watch(guard: Guard, keys: KeyPool, link: Link) -> Iterator[None]:
    """Show how things stand with a gateway while the block runs."""
    with contextlib.ExitStack() as stack:
        stack.callback(IN_FLIGHT.follow(lambda: {(): float(guard.in_flight)}))
        stack.callback(KEYS.follow(lambda: {(): float(len(keys))}))
        stack.callback(CONNECTED.follow(lambda: {("nats",): float(link.is_up)}))
        yield
