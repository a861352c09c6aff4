"""What an instance tells the ledger about its runs: in batches, off the call path."""

import contextlib
from typing import Final

from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId

READY_S: Final = 0.01
LATEST_S: Final = 0.02
_BATCH: Final = 500


class Record:
    """Collects events for 10 to 20 ms, the last one of each (run, attempt), and publishes them together."""

    def __init__(self, connection: Connection, version: VersionId) -> None:
        self._connection = connection
        self._subject = subjects.run_events(version)
        self._events: list[messages.RunEvent] = []
        self._may_repeat = False
        self._rider = connection.rider(self.flush, READY_S, LATEST_S)

    def begin(self, event: messages.RunEvent) -> None:
        """Keep the event of a run that has begun; the next one of the same run and attempt replaces it."""
        self._may_repeat = True
        self.add(event)

    def add(self, event: messages.RunEvent) -> None:
        """Keep the event of a run that is over."""
        self._events.append(event)
        if len(self._events) == 1:
            self._rider.arm()
        elif len(self._events) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Publish what there is; when the server has been away for too long, it is lost."""
        self._rider.disarm()
        if self._events:
            runs, self._events = self._events, []
            if self._may_repeat:
                self._may_repeat = False
                runs = list({(event.run, event.attempt): event for event in runs}.values())
            with contextlib.suppress(BrokerError):
                self._connection.publish(self._subject, codec.encode(messages.Events(runs=runs)))
