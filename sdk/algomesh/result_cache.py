"""Results that are kept: the stored outcome of the same version for the same input (ADR 0011).

Whoever sends a call looks first, so a hit needs no instance. Looking is one question to the server, which is given up
soon: a cache that is slow, full, broken or not there is a miss, and never an error. What is asked for twice at once in
this process is looked up, and run, once.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, NamedTuple

import msgspec

from algomesh.claiming import is_claimed, is_large
from algomesh.content import Content
from algomesh_broker import subjects
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.messages import ContentType
from algomesh_broker.names import VersionId
from algomesh_broker.route import CallStep, Step
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.results")

_PATIENCE_S: Final = 0.25
_AWAY_S: Final = 1.0
_DIGEST_BYTES: Final = 24
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[ContentType, str, memoryview]).decode


def digest_of(content: Content) -> str:
    """What names this very input, as hex; nothing for one that is in a claim or too large to be looked up."""
    if is_large(content) or is_claimed(content.content_type, content.payload):
        return ""
    # The head ends where msgpack says, so no two inputs make one text.
    digest = hashlib.blake2b(_pack((content.content_type, content.detail)), digest_size=_DIGEST_BYTES)
    digest.update(content.payload)
    return digest.hexdigest()


def is_kept(step: Step) -> bool:
    """Whether the result of this step of a route may be in the cache."""
    return isinstance(step, CallStep) and bool(step.cache_s) and not step.takes_parts


class Answered(NamedTuple):
    """What came of a call: its output, and whether it was kept from another."""

    content: Content
    cached: bool


class ResultCache:
    """Looks for results, and keeps them, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._away_until = 0.0
        self._flights: dict[Hashable, asyncio.Future[Content | None]] = {}

    async def get(self, version: VersionId, content: Content, deadline: float) -> Content | None:
        """The result of `version` for this input, if it is kept; waits a quarter of a second at most.

        `deadline` is the loop's time.
        """
        digest = digest_of(content)
        now = self._loop.time()
        if not digest or now < self._away_until or now >= deadline or not self._connection.is_connected:
            return None
        subject = subjects.read_result(version, digest)
        try:
            message = await self._connection.request(subject, b"", min(_PATIENCE_S, deadline - now))
        except BrokerError as error:
            log.debug("result_not_looked_up", version=str(version), error=str(error))
            self._away_until = self._loop.time() + _AWAY_S
            return None
        # The server's mark is in the name under which it is kept.
        found = (message.headers or {}).get("Nats-Subject", "")
        if message.status or not found.endswith(f".{version.tokens}.{digest}.result"):
            return None
        try:
            return Content(*_unpack(message.data))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("kept_result_unreadable", version=str(version), error=str(error))
            return None

    def put(self, version: VersionId, digest: str, output: Content, cache_s: float) -> None:
        """Keep an output for `cache_s` seconds; never waits, and nobody hears of it when it fails."""
        if is_large(output) or is_claimed(output.content_type, output.payload):
            return
        headers = {"Nats-TTL": f"{max(1, int(cache_s + 0.999))}s"}
        try:
            self._connection.publish(subjects.kept_result(version, digest), _pack(tuple(output)), headers=headers)
        except BrokerError as error:
            log.info("result_not_kept", version=str(version), error=str(error))

    async def once(self, key: Hashable, deadline: float, run: Callable[[], Awaitable[Answered]]) -> Answered:
        """Run it, unless the same is under way here: then wait for that, and take its output.

        `key` must tell apart calls at different depths, so that no run ever waits for one that waits for itself. When
        the first one is cancelled the next one runs; when it fails, or its output is in a claim, which is not to be
        shared, the others run by themselves.
        """
        while (flight := self._flights.get(key)) is not None:
            try:
                async with asyncio.timeout_at(deadline):
                    output = await asyncio.shield(flight)
            except TimeoutError:
                return await run()  # which will say that its time is over
            except asyncio.CancelledError:
                if flight.cancelled() and not _is_cancelled():
                    continue
                raise
            return await run() if output is None else Answered(output, cached=True)
        flight = self._flights[key] = self._loop.create_future()
        shared: Content | None = None
        try:
            answered = await run()
            if not is_claimed(answered.content.content_type, answered.content.payload):
                shared = answered.content
        except asyncio.CancelledError:
            flight.cancel()
            raise
        else:
            return answered
        finally:
            del self._flights[key]
            if not flight.done():
                flight.set_result(shared)


def _is_cancelled() -> bool:
    """Whether it is the task itself that was cancelled, and not what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
