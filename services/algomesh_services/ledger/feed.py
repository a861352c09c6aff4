"""Run events off their stream: a durable pull consumer, in batches, acknowledged when they are in the table.

While one batch is written the next one is on its way. What is not acknowledged comes again, so nothing is lost
when this program or PostgreSQL ends in the middle; what comes twice changes nothing.
"""

import asyncio
import itertools
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
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0
# Nothing there, or not in time: the ordinary ends of a pull. Any other status: the consumer is not what it was.
_ENDED: Final = frozenset({404, 408})


class Feed:
    """Batches of messages from the stream of events; used by one task."""

    def __init__(self, admin: JetStreamAdmin, *, batch: int, linger_s: float) -> None:
        self._admin = admin
        self._connection = admin.connection
        self._batch, self._linger_s = batch, linger_s
        self._loop = asyncio.get_running_loop()
        self._inbox = f"{self._connection.identity.inbox}.pull"
        self._pulls = itertools.count(1)
        self._pull = ""
        self._asked = 0
        self._until = 0.0
        self._buffer: list[Message] = []
        self._arrived = asyncio.Event()
        self._is_doubtful = True
        self._connection.on_reconnect.append(self._on_reconnect)
        self._messages = self._connection.join(f"{self._inbox}.*", self._on_message)

    async def take(self) -> list[Message]:
        """Wait for messages; the first of them waits a moment for others."""
        while not self._buffer:
            await self.prepare()
            self._pull_now()
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(self._until):
                    await self._arrived.wait()
            except TimeoutError:
                self._asked = 0  # the server did not even say that nothing came
        if len(self._buffer) < self._batch and self._asked:
            await asyncio.sleep(self._linger_s)
        taken, self._buffer = self._buffer[: self._batch], self._buffer[self._batch :]
        if not self._buffer and not self._is_doubtful:
            self._pull_now()
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

    def _pull_now(self) -> None:
        """Ask for a batch, unless one was asked for and may still come."""
        if self._asked > 0 and self._loop.time() < self._until:
            return
        request = {"batch": self._batch, "expires": int(_PULL_S * 1e9), "max_bytes": _PULL_BYTES}
        self._pull = f"{self._inbox}.{next(self._pulls)}"
        self._asked, self._until = self._batch, self._loop.time() + _PULL_S + 1.0
        try:
            self._connection.publish(_NEXT, msgspec.json.encode(request), self._pull)
        except BrokerError as error:
            log.warning("waiting_for_server", server="nats", error=str(error))

    def _on_message(self, message: Message) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._buffer.append(message)
            self._asked -= 1
        elif message.subject == self._pull:
            self._asked = 0
            self._is_doubtful = self._is_doubtful or (message.status not in _ENDED and not self._is_full(message))
        self._arrived.set()

    def _is_full(self, message: Message) -> bool:
        """An end that only says that the batch had its bytes."""
        return message.status == 409 and "MaxBytes" in "".join((message.headers or {}).values())

    def _on_reconnect(self) -> None:
        self._is_doubtful = True
        self._arrived.set()
