"""Run events off their stream: a durable pull consumer, in batches, acknowledged when they are in the table.

What is not acknowledged comes again, so nothing is lost when this program or PostgreSQL ends in the middle; what comes
twice changes nothing. Each message is acknowledged by itself: others may take from the same consumer, and to
acknowledge all up to one would be to answer for theirs.

While few messages come, a pull waits for them, and what ran is in the table at once. When many come, each one by
itself would cost a turn of the loop here, and a small transaction every moment: then nothing is asked for until they
have gathered in their stream, where they cost nothing, and all of them are taken in one go.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from algomesh_broker.connection import Message
from algomesh_broker.errors import BrokerError
from algomesh_broker.streams import JetStreamAdmin
from algomesh_broker.subjects import EVENTS_STREAM

log = structlog.get_logger("algomesh.ledger")

CONSUMER: Final = "ledger"
_NEXT: Final = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{CONSUMER}"
_ACK: Final = b"+ACK"
_PULL_S: Final = 5.0
_PULL_BYTES: Final = 16 * 2**20
_BURST_S: Final = 2.0  # in which messages that are there already have come
# So many within `linger_s` are many.
_FEW: Final = 5
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0
# Nothing there, or not in time: the ordinary ends of a pull. Any other status: the consumer is not what it was.
_ENDED: Final = frozenset({404, 408})


class Feed:
    """Batches of messages from the stream of events; used by one task."""

    def __init__(self, admin: JetStreamAdmin, *, batch: int, linger_s: float, gather_s: float) -> None:
        self._admin = admin
        self._connection = admin.connection
        self._batch, self._linger_s, self._gather_s = batch, linger_s, gather_s
        # Half as many as begin it.
        self._least_busy = _FEW / 2 * gather_s / linger_s
        self._loop = asyncio.get_running_loop()
        self._inbox = f"{self._connection.identity.inbox}.pull"
        self._pulls = itertools.count(1)
        self._pull = ""
        self._asked = 0
        self._until = 0.0
        self._gathered_at = 0.0
        self._buffer: list[Message] = []
        self._arrived = asyncio.Event()
        self._is_busy = False
        self._is_cut = False
        self._is_doubtful = True
        self._connection.on_reconnect.append(self._on_reconnect)
        self._messages = self._connection.join(f"{self._inbox}.*", self._on_message)

    async def take(self) -> list[Message]:
        """Wait for messages: at most `batch`."""
        while True:
            if self._is_busy:
                await asyncio.sleep(self._gathered_at - self._loop.time())
            await self.prepare()
            await (self._take_all() if self._is_busy else self._take_few())
            if self._buffer:
                break
        taken, self._buffer = self._buffer[: self._batch], self._buffer[self._batch :]
        return taken

    def acknowledge(self, messages: list[Message]) -> None:
        """They are in the table: never again."""
        try:
            for message in messages:
                self._connection.publish(message.reply, _ACK)
        except BrokerError as error:
            log.warning("not_acknowledged", count=len(messages), error=str(error))  # they come again

    async def close(self) -> None:
        """Take no more."""
        self._connection.on_reconnect.remove(self._on_reconnect)
        self._messages.leave()

    async def prepare(self) -> None:
        """See that there is a stream and a consumer to pull from; tries until there is."""
        delay_s, said = _RETRY_FIRST_S, ""
        while self._is_doubtful:
            self._asked = 0
            try:
                if await self._admin.ensure_events():
                    log.info("stream_made", stream=EVENTS_STREAM)
                await self._admin.ensure_ledger(CONSUMER)
                self._is_doubtful = False
            except BrokerError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("waiting_for_server", server="nats", error=said)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _RETRY_LAST_S)

    async def _take_few(self) -> None:
        """Wait for a message, and a moment for others."""
        if self._asked <= 0 or self._loop.time() >= self._until:
            self._pull_now(min(_FEW, self._batch), {"expires": int(_PULL_S * 1e9)}, _PULL_S + 1.0)
        await self._wait(lambda: bool(self._buffer) or self._asked <= 0, self._until)
        if not self._buffer:
            self._end_pull()
            return
        await self._wait(lambda: self._asked <= 0, self._loop.time() + self._linger_s)
        if len(self._buffer) >= _FEW:
            self._is_busy, self._gathered_at = True, self._loop.time() + self._gather_s

    async def _take_all(self) -> None:
        """Take what has gathered."""
        began = self._loop.time()
        self._pull_now(self._batch, {"no_wait": True}, _BURST_S)
        await self._wait(lambda: self._asked <= 0, self._until)
        self._end_pull()
        is_all = len(self._buffer) < self._batch and not self._is_cut
        self._gathered_at = began + self._gather_s if is_all else began
        self._is_busy = not is_all or len(self._buffer) >= self._least_busy

    async def _wait(self, is_so: Callable[[], bool], until: float) -> None:
        """Return when it is so, or the consumer may not be what it was, or it is `until`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not is_so() and not self._is_doubtful:
                    self._arrived.clear()
                    await self._arrived.wait()

    def _pull_now(self, count: int, how: dict[str, object], within_s: float) -> None:
        """Ask for so many messages."""
        request = {"batch": count, "max_bytes": _PULL_BYTES, **how}
        self._pull = f"{self._inbox}.{next(self._pulls)}"
        self._asked, self._until, self._is_cut = count, self._loop.time() + within_s, False
        try:
            self._connection.publish(_NEXT, msgspec.json.encode(request), self._pull)
        except BrokerError as error:
            log.warning("waiting_for_server", server="nats", error=str(error))

    def _end_pull(self) -> None:
        """Ask anew; if the server did not even say that nothing came, see first what there is."""
        self._is_doubtful = self._is_doubtful or self._asked > 0
        self._asked = 0

    def _on_message(self, message: Message) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._buffer.append(message)
            self._asked -= 1
        elif message.subject == self._pull:
            self._asked = 0
            self._is_cut = self._is_full(message)
            self._is_doubtful = self._is_doubtful or (message.status not in _ENDED and not self._is_cut)
        self._arrived.set()

    def _is_full(self, message: Message) -> bool:
        """An end that only says that the batch had its bytes."""
        return message.status == 409 and "MaxBytes" in "".join((message.headers or {}).values())

    def _on_reconnect(self) -> None:
        self._is_doubtful = True
        self._arrived.set()
