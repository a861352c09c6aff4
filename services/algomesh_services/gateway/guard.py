"""Which HTTP connections may stay: aiohttp itself lets a client send its request head as slowly as it likes."""

import asyncio
from typing import Final

import structlog
from aiohttp import web

log = structlog.get_logger("algomesh.gateway")

_SWEEP_S: Final = 1.0


class Guard:
    """Closes connections that have sent no whole request in time, and the oldest of too many. Times in seconds."""

    def __init__(self, *, head_s: float, idle_s: float, limit: int) -> None:
        self._head_s, self._idle_s, self._limit = head_s, idle_s, limit
        self._loop = asyncio.get_running_loop()
        self._first_seen: dict[web.RequestHandler, float] = {}
        self._last_end: dict[web.RequestHandler, float] = {}
        self._busy: dict[web.RequestHandler, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many requests are being answered."""
        return sum(self._busy.values())

    def begin(self, protocol: web.RequestHandler) -> None:
        """A request's head has come."""
        self._busy[protocol] = self._busy.get(protocol, 0) + 1
        self._idle.clear()

    def end(self, protocol: web.RequestHandler) -> None:
        """A request was answered, or its client has gone."""
        left = self._busy.pop(protocol) - 1
        if left:
            self._busy[protocol] = left
        else:
            self._last_end[protocol] = self._loop.time()
        if not self._busy:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no request is being answered."""
        await self._idle.wait()

    async def run(self, server: web.Server) -> None:
        """Sweep until cancelled."""
        while True:
            self._sweep(server, self._loop.time())
            await asyncio.sleep(min(_SWEEP_S, self._head_s / 4))

    def _sweep(self, server: web.Server, now: float) -> None:
        waiting: list[tuple[float, web.RequestHandler]] = []
        there = server.connections
        for known in (self._first_seen, self._last_end):
            for gone in known.keys() - set(there):
                del known[gone]
        for protocol in there:
            seen = self._first_seen.setdefault(protocol, now)
            if protocol in self._busy:
                continue
            ended = self._last_end.get(protocol)
            if (now - ended > self._idle_s) if ended is not None else (now - seen > self._head_s):
                protocol.force_close()
            else:
                waiting.append((seen if ended is None else ended, protocol))
        surplus = len(waiting) + len(self._busy) - self._limit
        if surplus > 0:
            waiting.sort(key=lambda pair: pair[0])
            for _, protocol in waiting[:surplus]:
                protocol.force_close()
            log.warning("connections_shed", count=min(surplus, len(waiting)), limit=self._limit)
