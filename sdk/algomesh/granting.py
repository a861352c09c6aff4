"""Route tokens, as the sender of pipelines gets and keeps them: one question to the registry for ten minutes.

A route in which nobody hands over, a fan-out of single stages say, needs none.
"""

import asyncio
import time
from typing import Final

from algomesh.requests import ask
from algomesh_broker.connection import Connection
from algomesh_broker.grants import LIFETIME_S, Granted, read_token
from algomesh_broker.platform import RouteAsk, RouteGrant
from algomesh_broker.route import Route

_MOST_KNOWN: Final = 1024
_ASK_S: Final = 10.0
_SPARE_S: Final = 60.0


class Grants:
    """The tokens of one sender."""

    def __init__(self, connection: Connection, instance_token: str = "") -> None:
        """`instance_token` is that of an instance, which proves to the registry what it may call."""
        self._connection = connection
        self._token = instance_token
        self._known: dict[bytes, Granted] = {}
        self._asking: dict[bytes, asyncio.Task[Granted]] = {}

    def known(self, route: Route, timeout_s: float) -> Granted | None:
        """The token for `route`, if there is one that outlives a run of `timeout_s` seconds."""
        granted = self._known.get(route.data)
        return granted if granted is not None and granted.expires > time.time() + timeout_s else None

    async def fetch(self, route: Route, timeout_s: float) -> Granted:
        """Ask the registry; those who want the same ask once. Raises PermissionDenied, Unreachable."""
        asking = self._asking.get(route.data)
        if asking is None:
            asking = asyncio.ensure_future(self._fetch(route, timeout_s))
            self._asking[route.data] = asking
            asking.add_done_callback(lambda _: self._asking.pop(route.data, None))
        return await asyncio.shield(asking)

    async def _fetch(self, route: Route, timeout_s: float) -> Granted:
        body = RouteAsk(route=route.data, lifetime_s=LIFETIME_S + timeout_s + _SPARE_S, token=self._token)
        answer = await ask(self._connection, "registry", "route", "", body, RouteGrant, min(_ASK_S, timeout_s))
        granted = read_token(answer.grant)
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[route.data] = granted
        return granted
