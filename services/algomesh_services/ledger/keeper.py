"""The ledger's work: events into the table, lost runs marked, old ones deleted."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from algomesh_broker import codec
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, Forbidden
from algomesh_broker.messages import Death, RunEvent
from algomesh_broker.subjects import ALL_FLEET, HOST_BEATS
from algomesh_services.ledger import events, metrics
from algomesh_services.ledger.feed import Feed
from algomesh_services.ledger.fleet import Deaths
from algomesh_services.ledger.lag import Lag
from algomesh_services.ledger.store import Store
from algomesh_services.postgres_pool import BadRows, StoreAway

log = structlog.get_logger("algomesh.ledger")

_RETRY_FIRST_S, _RETRY_LAST_S = 0.1, 2.0
_LOOK_S: Final = 1.0
_ROWS_AT_ONCE: Final = 5_000
_READ_AT_ONCE: Final = 100
# No deadline is longer than a week.
_LONGEST_RUN_DAYS: Final = 8.0
_HOST_PREFIX: Final = HOST_BEATS.removesuffix("*")


class Keeper:
    """Keeps the table. `keep` and `look_after` run until cancelled; a batch under way is finished by `finish`.

    `lag` is how far the table is behind; `is_stored` says whether PostgreSQL took what it was last given.
    """

    def __init__(
        self,
        store: Store,
        feed: Feed,
        *,
        keep_days: float,
        upkeep_s: float,
        delete_rows: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._feed, self._clock = store, feed, clock
        self._keep_days, self._upkeep_s, self._delete_rows = keep_days, upkeep_s, delete_rows
        self._loop = asyncio.get_running_loop()
        self._deaths = Deaths(self._loop.time())
        self._is_written = asyncio.Event()
        self._is_written.set()
        self.lag = Lag()
        self.is_stored = True

    # Events

    async def keep(self) -> None:
        """Write what comes, batch by batch."""
        while True:
            messages = await self._feed.take()
            self._is_written.clear()
            self.lag.took(messages)
            try:
                await self._keep_batch(messages)
                self._feed.acknowledge(messages)
                metrics.DELAY_SECONDS.observe(self.lag.wrote(self._clock()))
            finally:
                self._is_written.set()

    async def finish(self) -> None:
        """Return when no batch is half way."""
        await self._is_written.wait()

    async def _keep_batch(self, messages: Sequence[Message]) -> None:
        found: list[RunEvent] = []
        for number, message in enumerate(messages, 1):
            found += self._read(message)
            if number % _READ_AT_ONCE == 0:
                await asyncio.sleep(0)  # whoever asks for runs does not wait for all of these
            if len(found) >= _ROWS_AT_ONCE:
                await self._write(events.merged(found))
                found = []
        await self._write(events.merged(found))

    def _read(self, message: Message) -> list[RunEvent]:
        try:
            # Delivered by a pull, its subject is the one it was published on.
            taken = events.read(message.subject, message.data, self._clock())
        except BadMessage as error:
            log.warning("events_unreadable", subject=message.subject, error=str(error))
            metrics.DROPPED.add(1, "unreadable")
            return []
        if taken.dropped:
            log.warning("events_dropped", subject=message.subject, count=taken.dropped)
            metrics.DROPPED.add(taken.dropped, "not_allowed")
        return taken.events

    async def _write(self, batch: list[RunEvent]) -> None:
        """Write until it is committed; rows that PostgreSQL refuses are found by halving, and dropped."""
        delay_s, said, began = _RETRY_FIRST_S, "", self._loop.time()
        while batch:
            try:
                ended = await self._store.write(batch)
            except BadRows as error:
                if len(batch) == 1:
                    log.warning("event_refused", run=batch[0].run, algorithm=batch[0].algorithm, error=str(error))
                    metrics.DROPPED.add(1, "refused")
                    return
                middle = len(batch) // 2
                await self._write(batch[:middle])
                batch = batch[middle:]
            except StoreAway as error:
                self.is_stored = False
                if str(error) != said:
                    said = str(error)
                    log.warning("waiting_for_server", server="postgres", error=said, events=len(batch))
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _RETRY_LAST_S)
            else:
                self.is_stored = True
                metrics.ROWS.add(len(batch))
                metrics.WRITE_SECONDS.observe(self._loop.time() - began)
                metrics.RUNS.count(ended)
                return

    # The fleet

    async def hear_fleet(self, connection: Connection) -> None:
        """Hear of deaths and beats; without the right to, the senders' own word must do. Raises Unreachable."""
        connection.on_reconnect.append(lambda: self._deaths.on_silence(self._loop.time()))
        try:
            await connection.subscribe(ALL_FLEET, self._on_fleet)
        except Forbidden as error:
            log.warning("fleet_not_heard", error=str(error))

    def _on_fleet(self, message: Message) -> None:
        try:
            if message.subject.startswith(_HOST_PREFIX):
                beat = codec.decode_host_beat(message.data)
                self._deaths.on_beat(beat.launcher, self._loop.time(), is_alive=beat.alive)
                return
            word = codec.decode_fleet(message.data)
        except BadMessage as error:
            log.warning("fleet_message_ignored", subject=message.subject, error=str(error))
            return
        if isinstance(word, Death):
            self._deaths.on_death(word.instance, word.reason, self._loop.time())

    # Looking after the table

    async def look_after(self) -> None:
        """Mark what was lost, once a second; delete what is old, now and then."""
        next_upkeep = self._loop.time()
        while True:
            try:
                await self._mark_lost()
                if self._loop.time() >= next_upkeep:
                    next_upkeep = self._loop.time() + self._upkeep_s
                    await self._upkeep()
            except StoreAway as error:
                log.debug("upkeep_postponed", error=str(error))
            await asyncio.sleep(_LOOK_S)

    async def _mark_lost(self) -> None:
        for reason, instances in self._deaths.due(self._loop.time()):
            count = await self._store.lose_instances(instances, reason, self._clock())
            if count:
                log.info("runs_lost", count=count, reason=reason)
                metrics.LOST.add(count, reason)

    async def _upkeep(self) -> None:
        running = await self._store.running_instances()
        homeless = self._deaths.homeless(running, self._loop.time()) if running else []
        if homeless:
            count = await self._store.lose_instances(homeless, "host_lost", self._clock())
            log.info("runs_lost", count=count, reason="host_lost")
            metrics.LOST.add(count, "host_lost")
        await self._store.lose_older(_LONGEST_RUN_DAYS, "instance_lost", self._clock())
        deleted = await self._store.delete_older(self._keep_days, self._delete_rows)
        if deleted:
            log.info("runs_deleted", count=deleted, older_than_days=self._keep_days)
