"""What the pre-warmer keeps through a restart: the policy's statistics, and the record of starts and calls."""

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Final, Protocol, TypeVar

import msgspec
import structlog

from algomesh_broker.platform import SparedRow
from algomesh_services.postgres_pool import BadRows, StoreAway
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.snapshots import Packed, Snapshot, read
from algomesh_services.prewarmer.spared import Spared, SparedCall
from algomesh_services.prewarmer.speculation import Speculation
from algomesh_services.prewarmer.starts import Start, Starts
from algomesh_services.prewarmer.store import Store, StoredStart

log = structlog.get_logger("algomesh.prewarmer")

Made = TypeVar("Made")

_DELETE_EVERY_S: Final = 3_600.0
_HELD_EVERY_S: Final = 10.0


class Learned(Protocol):
    """What is asked of BreakEvenPolicy."""

    def pack(self) -> Generator[None, None, Packed]:
        """All it has learned, piece by piece."""
        ...

    def restore(self, snapshot: Snapshot, /) -> None:
        """Know what a snapshot knows. Raises ValueError."""
        ...


async def restore(store: Store, policy: Learned, speculation: Speculation) -> bool:
    """Give these the newest snapshot that is whole; others are set aside. Raises StoreAway.

    Returns whether there was one.
    """
    for snapshot in await store.snapshots():
        damage = snapshot.damage
        if not damage:
            try:
                kept = await asyncio.to_thread(read, snapshot.data)
                accounts = Speculation.of(kept.accounts)
                policy.restore(kept)
            except ValueError as error:
                damage = str(error)[:500] or type(error).__name__
            else:
                speculation.take_over(accounts)
                log.info("snapshot_restored", number=snapshot.number, size_bytes=len(snapshot.data))
                return True
        log.warning("snapshot_set_aside", number=snapshot.number, error=damage)
        await store.set_aside(snapshot.number, damage)
    return False


class Tally:
    """Calls, and cold ones, by the minute of our clock on the wall."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._minutes: dict[int, tuple[int, int]] = {}

    def add(self, calls: int, cold: int) -> None:
        """So many began now."""
        self._put(int(self._wall() // 60), calls, cold)

    def take(self) -> dict[int, tuple[int, int]]:
        """What is not written yet."""
        minutes, self._minutes = self._minutes, {}
        return minutes

    def give_back(self, minutes: dict[int, tuple[int, int]]) -> None:
        """These could not be written."""
        for minute, counts in minutes.items():
            self._put(minute, *counts)

    def _put(self, minute: int, calls: int, cold: int) -> None:
        before = self._minutes.get(minute, (0, 0))
        self._minutes[minute] = (before[0] + calls, before[1] + cold)


class Keeper:
    """Writes what has changed, again and again: `run` until cancelled, then `finish` once more."""

    def __init__(
        self,
        store: Store,
        policy: Learned,
        starts: Starts,
        tally: Tally,
        spared: Spared,
        speculation: Speculation,
        clock: Clock,
        *,
        snapshot_s: float,
        write_s: float,
        keep_days: float,
    ) -> None:
        self._store, self._policy, self._clock = store, policy, clock
        self._starts, self._tally, self._spared, self._speculation = starts, tally, spared, speculation
        self._snapshot_s, self._write_s, self._keep_s = snapshot_s, write_s, keep_days * 86_400.0
        self._said = ""

    async def run(self) -> None:
        """Write for ever; what cannot be written now is written later."""
        loop = asyncio.get_running_loop()
        next_snapshot, next_delete, next_held = loop.time() + self._snapshot_s, loop.time(), loop.time()
        while True:
            await asyncio.sleep(self._write_s)
            now = loop.time()
            if now >= next_held:
                next_held = now + _HELD_EVERY_S
                self._starts.touch_held()
            await self.write()
            try:
                if now >= next_snapshot:
                    next_snapshot = now + self._snapshot_s
                    await self.snapshot()
                if now >= next_delete:
                    next_delete = now + _DELETE_EVERY_S
                    await self._store.delete_older(self._clock.wall_of(self._clock.now()) - self._keep_s)
            except StoreAway as error:
                self._say(error)

    async def finish(self) -> None:
        """Keep everything as it is now, if the database is there."""
        self._starts.touch_held()
        await self.write()
        try:
            await self.snapshot()
        except StoreAway as error:
            self._say(error)

    async def write(self) -> None:
        """Write the starts and calls that are new."""
        starts, calls = self._starts.take_changed(), self._tally.take()
        spared, savings = self._spared.take()
        if not starts and not calls and not savings:
            return
        try:
            await self._store.write(
                [self._stored(start) for start in starts], calls, [self._row(call) for call in spared], savings
            )
        except BadRows as error:
            log.warning("starts_refused", count=len(starts), error=str(error))
        except StoreAway as error:
            self._starts.give_back(starts)
            self._tally.give_back(calls)
            self._spared.give_back(spared, savings)
            self._say(error)
        else:
            self._said = ""

    async def snapshot(self) -> None:
        """Keep the policy's statistics. Raises StoreAway."""
        packed = await _in_turns(self._policy.pack())
        packed.accounts = await _in_turns(self._speculation.pack())
        await self._store.add_snapshot(await asyncio.to_thread(msgspec.msgpack.encode, packed))

    def _stored(self, start: Start) -> StoredStart:
        algorithm, _, version = start.version.rpartition("/")
        started, ready, used, ended = (
            self._clock.wall_of(at_s) if at_s else 0.0
            for at_s in (start.started_s, start.ready_s, start.used_s, start.ended_s)
        )
        return StoredStart(
            start.instance, start.launcher, algorithm, version, start.kind, start.reason[:500], start.after,
            start.caller, started, ready, used, ended, start.held_s, start.saved_s, start.in_time, start.gpu,
        )  # fmt: skip

    def _row(self, call: SparedCall) -> SparedRow:
        algorithm, _, version = call.version.rpartition("/")
        return SparedRow(
            run=call.run, root=call.root, algorithm=algorithm, version=version, caller=call.caller,
            at=self._clock.wall_of(call.called_s), seconds=call.seconds, why=call.why, count=call.calls,
        )  # fmt: skip

    def _say(self, error: StoreAway) -> None:
        if str(error) != self._said:
            self._said = str(error)
            log.warning("waiting_for_server", server="postgres", error=self._said)


async def _in_turns(pieces: Generator[None, None, Made]) -> Made:
    """What the pieces make, with everything else that is to be done in between: nobody waits for more than one."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            made: Made = end.value
            return made
        await asyncio.sleep(0)


def known_start(stored: StoredStart) -> Start:
    """A start of an earlier life of ours."""
    return Start(
        instance=stored.instance,
        launcher=stored.launcher,
        version=f"{stored.algorithm}/{stored.version}",
        kind=stored.kind,  # type: ignore[arg-type]  # only ours are in the table
        reason=stored.reason,
        started_s=stored.started_at,
        gpu=stored.gpu,
        caller=stored.caller,
        after=stored.after,
        ready_s=stored.ready_at,
        used_s=stored.used_at,
        held_s=stored.held_s,
        saved_s=stored.saved_s,
        in_time=stored.in_time,
    )
