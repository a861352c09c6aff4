"""What the pre-warmer wishes to have up: hears `hold.all`, and knows at any moment which versions are held, and why.

The pre-warmer says everything once a second and what changes in between. While it is silent there are no holds at all,
and the launcher goes by fixed idle times. Nothing here waits or does I/O but `hear_holds`; times are seconds of a
monotonic clock, passed as `now`.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import structlog

from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadMessage, BadName
from algomesh_broker.names import VersionId

log = structlog.get_logger("algomesh.launcher")

SILENT_AFTER_S = 5.0
GRACE_S = 0.25
MOST_HOLDS = 4096
_LONGEST_TEXT = 300
_REMEMBER_S = 60.0


async def hear_holds(connection: Connection, on_holds: Callable[[messages.Holds], None]) -> Subscription:
    """Call `on_holds` for all that the pre-warmer says from now on. Raises Forbidden, Unreachable."""

    def hear(message: Message) -> None:
        try:
            said = codec.decode_holds(message.data)
        except BadMessage as error:
            log.warning("holds_unreadable", error=str(error))
            return
        on_holds(said)

    return await connection.subscribe(subjects.HOLDS, hear)


@dataclass(frozen=True, kw_only=True)
class Held:
    """One hold: from `start_at` until `until_at` the version is to be up, for `reason`; `gain` is its rank."""

    key: str
    start_at: float
    until_at: float
    reason: str
    gain: float = 0.0


class HoldBook:
    """The holds there are for `launcher`. No more than `most` are kept: of a whole set those with the highest gain."""

    def __init__(self, most: int = MOST_HOLDS, launcher: str = "") -> None:
        self._most, self._launcher = most, launcher
        self._holds: dict[VersionId, dict[str, Held]] = {}
        self._count = 0
        self._off: frozenset[str] = frozenset()
        self._ended: dict[VersionId, float] = {}
        self._heard_at = self._alive_since = -math.inf

    def take(self, said: messages.Holds, now: float) -> None:
        """Apply what was said. A hold that cannot be read, or is over already, is left out."""
        if not self.is_alive(now):
            self._holds, self._ended, self._count, self._alive_since = {}, {}, 0, now
        self._drop_over(now)
        if said.is_whole:
            self._heard_at, self._off = now, frozenset(said.off)
            before, self._holds, self._count = self._holds, {}, 0
            for hold in sorted(said.holds, key=lambda hold: -_finite(hold.gain)):
                self._add(hold, now)
            for version, holds in before.items():
                if _are_current(holds, now) and not _are_current(self._holds.get(version, {}), now):
                    self._ended[version] = now
            self._ended = {version: at for version, at in self._ended.items() if now - at < _REMEMBER_S}
            return
        for text, key in said.released:
            released = _version(text)
            if released is not None:
                self._remove(released, key, now)
        for hold in said.holds:
            self._add(hold, now)

    def is_alive(self, now: float) -> bool:
        """Whether the pre-warmer has said everything lately."""
        return now - self._heard_at <= SILENT_AFTER_S

    def manages(self, version: VersionId, now: float) -> bool:
        """Whether the pre-warmer decides how long idle instances of `version` stay."""
        return self.is_alive(now) and str(version) not in self._off

    def versions(self) -> Iterator[VersionId]:
        """All versions that are held, or will be."""
        return iter(self._holds)

    def held(self, now: float) -> list[VersionId]:
        """The versions that are held now."""
        return [version for version in self._holds if self.current(version, now) is not None]

    def current(self, version: VersionId, now: float) -> Held | None:
        """The hold on `version` that counts most now; None when there is none."""
        holds = self._holds.get(version)
        if not holds or not self.is_alive(now):
            return None
        begun = [hold for hold in holds.values() if hold.start_at <= now < hold.until_at]
        return max(begun, key=lambda hold: (hold.gain, hold.until_at, hold.key), default=None)

    def unheld_since(self, version: VersionId, now: float) -> float:
        """Since when nothing holds `version`, which is not held now; not before the pre-warmer could have held it."""
        over = [hold.until_at for hold in self._holds.get(version, {}).values() if hold.until_at <= now]
        return max(self._alive_since, self._ended.get(version, -math.inf), *over)

    def next_edge(self, after: float, up: Collection[VersionId] = ()) -> float | None:
        """When something is to be done next, later than `after`: a hold begins, or its end is a grace ago.

        Where a version is `up`, nothing is to be done when a hold begins.
        """
        edges = [at + GRACE_S for at in (self._alive_since, *self._ended.values())]
        for version, holds in self._holds.items():
            edges += [hold.until_at + GRACE_S for hold in holds.values()]
            if version not in up:
                edges += [hold.start_at for hold in holds.values()]
        return min((edge for edge in edges if edge > after), default=None)

    def _add(self, hold: messages.Hold, now: float) -> None:
        version = _version(hold.version)
        if version is None or len(hold.key) > _LONGEST_TEXT:
            return
        start_at, until_at = now + max(0, hold.start_ms) / 1e3, now + hold.until_ms / 1e3
        is_others = hold.launcher not in ("", self._launcher)
        if is_others or until_at <= max(start_at, now):  # late: what it wished for has passed
            self._remove(version, hold.key, now)
            return
        known = self._holds.get(version, {})
        before = known.get(hold.key)
        if before is None and self._count >= self._most:
            log.warning("hold_dropped", version=str(version), reason="there are too many", most=self._most)
            return
        self._count += before is None
        held = Held(
            key=hold.key,
            start_at=start_at,
            until_at=until_at,
            reason=hold.reason[:_LONGEST_TEXT],
            gain=_finite(hold.gain),
        )
        was_current = _are_current(known, now)
        self._holds.setdefault(version, {})[hold.key] = held
        if was_current and not _are_current(self._holds[version], now):  # put off
            self._ended[version] = now

    def _remove(self, version: VersionId, key: str, now: float) -> None:
        holds = self._holds.get(version)
        if holds is None or key not in holds:
            return
        was_current = _are_current(holds, now)
        del holds[key]
        self._count -= 1
        if was_current and not _are_current(holds, now):
            self._ended[version] = now
        if not holds:
            del self._holds[version]

    def _drop_over(self, now: float) -> None:
        for version, holds in list(self._holds.items()):
            for key, hold in list(holds.items()):
                if hold.until_at <= now:
                    del holds[key]
                    self._count -= 1
                    self._ended[version] = max(self._ended.get(version, -math.inf), hold.until_at)
            if not holds:
                del self._holds[version]


def _are_current(holds: dict[str, Held], now: float) -> bool:
    return any(hold.start_at <= now < hold.until_at for hold in holds.values())


def _version(text: str) -> VersionId | None:
    try:
        return VersionId.parse(text)
    except BadName as error:
        log.warning("hold_unreadable", error=str(error))
        return None


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 0.0
