"""Which runs were written lately: pure, bounded, and only a hint.

A run that nobody wrote of is added to the table in the cheapest way there is; of one that is there already the table
itself says so. What is kept is a hash: taking one run for another costs a little time, no more.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from algomesh_broker.messages import RunEvent
from algomesh_services.ledger import events

MOST: Final = 50_000


class Split(NamedTuple):
    """Events about runs that were not written lately, and about those that were."""

    new: list[RunEvent]
    known: list[RunEvent]


class Recent:
    """The last `most` (run, attempt) whose end was written, and as many that still ran, which may take long."""

    def __init__(self, most: int = MOST) -> None:
        self._running, self._ended, self._lost = _Keys(most), _Keys(most), _Keys(most)

    def split(self, batch: Sequence[RunEvent], keys: list[int] | None = None) -> Split:
        """What is to be added, and what is to be merged with what is there. keys: those of `batch`, if at hand."""
        keys = keys_of(batch) if keys is None else keys
        known = self._ended.of(keys) | self._running.of(keys)
        if not known:
            return Split(list(batch), [])
        told = list(zip(keys, batch, strict=True))
        return Split([event for key, event in told if key not in known], [event for key, event in told if key in known])

    def add(self, batch: Sequence[RunEvent], keys: list[int] | None = None) -> list[RunEvent]:
        """These are in the table now; those that are the first end of their run, as far as is known, are returned."""
        keys = keys_of(batch) if keys is None else keys
        if events.RANKS.keys() & {event.state for event in batch}:
            return self._add_mixed(batch, keys)
        told = self._lost.of(keys) | self._ended.of(keys)
        self._ended.add(keys)
        return [event for key, event in zip(keys, batch, strict=True) if key not in told] if told else list(batch)

    def _add_mixed(self, batch: Sequence[RunEvent], keys: list[int]) -> list[RunEvent]:
        keyed = list(zip(keys, batch, strict=True))
        running = [(key, event) for key, event in keyed if event.state in events.RANKS]
        ended = [(key, event) for key, event in keyed if event.state not in events.RANKS]
        lost = [(key, event) for key, event in running if event.state == "lost"]
        self._running.add([key for key, _ in running])
        last = ended + lost
        last_keys = [key for key, _ in last]
        told = self._lost.of(last_keys) | self._ended.of(last_keys)
        self._lost.add([key for key, _ in lost])
        self._ended.add([key for key, _ in ended])
        return [event for key, event in last if key not in told]


class _Keys:
    """The last keys, in two generations: when the young are half of what may be kept, the old are forgotten."""

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._young: set[int] = set()
        self._old: set[int] = set()

    def of(self, keys: list[int]) -> set[int]:
        """Those of `keys` that are kept."""
        found: set[int] = set()
        for kept in (self._young, self._old):
            if kept:
                found |= kept.intersection(keys)
        return found

    def add(self, keys: list[int]) -> None:
        self._young.update(keys)
        if len(self._young) >= self._half:
            self._young, self._old = set(), self._young


def keys_of(batch: Sequence[RunEvent]) -> list[int]:
    """What each of these is remembered by."""
    return [hash((event.run, event.attempt)) for event in batch]
