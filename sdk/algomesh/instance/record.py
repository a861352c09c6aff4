"""What an instance tells the ledger about its runs: in batches, off the call path."""

import asyncio
import contextlib
from typing import Final

from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId

FLUSH_S: Final = 0.01
_BATCH: Final = 500


class Record:
    """Collects events for 10 ms, the last one of each (run, attempt), and publishes them together."""

    def __init__(self, connection: Connection, version: VersionId) -> None:
        self._connection = connection
        self._subject = subjects.run_events(version)
        self._loop = asyncio.get_running_loop()
        self._events: dict[tuple[str, int], messages.RunEvent] = {}
        self._flushing: asyncio.TimerHandle | None = None

    def add(self, event: messages.RunEvent) -> None:
        """Keep an event; a later one of the same run and attempt replaces it."""
        self._events[event.run, event.attempt] = event
        if len(self._events) >= _BATCH:
            self.flush()
        elif self._flushing is None:
            self._flushing = self._loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Publish what there is; when the server has been away for too long, it is lost."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._events:
            runs = list(self._events.values())
            self._events.clear()
            with contextlib.suppress(BrokerError):
                self._connection.publish(self._subject, codec.encode(messages.Events(runs=runs)))
