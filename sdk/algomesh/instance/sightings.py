"""What an instance tells the pre-warmer: which runs begin, and end, within 10 ms, off the call path.

A version that is called more than 200 times a second tells of some 25 only: of one root in eight, sixteen, and so on,
since the pre-warmer weighs each of them, and learns no more from more. Which, is decided by the root's id alone, so
that all versions tell of the same requests, whole. Nothing of it is kept anywhere: what is lost is a sample less.
"""

import asyncio
import contextlib
from typing import Final

from algomesh.instance.job import Job
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId

READY_S: Final = 0.004
LATEST_S: Final = 0.008
# Of a version of which one root in so many is told, nothing waits for the news: what follows it is up, or was not told.
SAMPLED_READY_S: Final = 0.05
SAMPLED_LATEST_S: Final = 0.1
MOST_PER_S: Final = 200
TOLD_PER_S: Final = 25
_WINDOW_S: Final = 0.25
_SMALLEST_SHARE: Final = 256


class Sightings:
    """Collects what is to be told for 4 to 8 ms, of a busy version for 50 to 100, and publishes it together."""

    def __init__(self, connection: Connection, version: VersionId) -> None:
        self._connection = connection
        self._subject = subjects.sights(version)
        self._loop = asyncio.get_running_loop()
        self._seen: dict[tuple[str, int], messages.Sight] = {}
        self._rider = connection.rider(self.flush, READY_S, LATEST_S)
        self._sampled_rider = connection.rider(self.flush, SAMPLED_READY_S, SAMPLED_LATEST_S)
        self._count, self._window_from = 0, self._loop.time()
        self._one_in, self._limit = 1, 0.0
        self._shown: frozenset[str] | None = None
        self._show(1)

    def add(self, job: Job, ended_at: float = 0.0) -> None:
        """Tell of a run that has begun, or ended at `ended_at` (seconds since the epoch), if it is among those told."""
        self._count += 1
        if self._count > self._limit:
            self._show(2 * self._one_in)
        if self._shown is None or job.call.root[-2:] in self._shown:
            self._tell(job, ended_at)

    def _tell(self, job: Job, ended_at: float) -> None:
        call, granted = job.call, job.granted
        self._seen[job.run, call.attempt] = messages.Sight(
            run=job.run,
            root=call.root,
            parent=call.parent,
            caller=job.caller,
            root_caller=call.root_caller,
            attempt=call.attempt,
            started_at=job.started_at,
            waited_ms=(job.started - job.arrived) * 1000 + job.cold_ms,
            ended_at=ended_at,
            stages=granted.route.after(call.at) if granted is not None else [],
        )
        if self._one_in == 1:
            self._rider.arm()
        elif len(self._seen) == 1:
            self._sampled_rider.arm()

    def flush(self) -> None:
        """Publish what there is."""
        self._rider.disarm()
        self._sampled_rider.disarm()
        if self._loop.time() - self._window_from >= _WINDOW_S:
            self._measure()
        if self._seen:
            sights = messages.Sights(runs=list(self._seen.values()), one_in=self._one_in)
            self._seen.clear()
            with contextlib.suppress(BrokerError):
                if self._connection.is_connected:  # what waited for a server would be no news
                    self._connection.publish(self._subject, codec.encode(sights))

    def _measure(self) -> None:
        """Choose how many to tell of by how many there were lately."""
        now = self._loop.time()
        per_s = self._count / max(_WINDOW_S, now - self._window_from)
        self._count, self._window_from = 0, now
        one_in = 1
        while per_s > MOST_PER_S and one_in < _SMALLEST_SHARE and per_s > one_in * TOLD_PER_S:
            one_in *= 2
        self._show(one_in)

    def _show(self, one_in: int) -> None:
        """Tell of the runs of one root in `one_in` from now on; in a burst of more, of fewer at once."""
        self._one_in = one_in
        self._limit = one_in * MOST_PER_S * _WINDOW_S if one_in < _SMALLEST_SHARE else float("inf")
        shown = range(_SMALLEST_SHARE // one_in)
        self._shown = None if one_in == 1 else frozenset(f"{digits:02x}" for digits in shown)
