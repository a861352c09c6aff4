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

    def split(self, batch: Sequence[RunEvent]) -> Split:
        """What is to be added, and what is to be merged with what is there."""
        keys = _keys(batch)
        known = self._ended.of(keys) | self._running.of(keys)
        if not known:
            return Split(list(batch), [])
        told = list(zip(keys, batch, strict=True))
        return Split([event for key, event in told if key not in known], [event for key, event in told if key in known])

    def add(self, batch: Sequence[RunEvent]) -> list[RunEvent]:
        """These are in the table now; those that are the first end of their run, as far as is known, are returned."""
        running = [event for event in batch if event.state in events.RANKS]
        ended = [event for event in batch if event.state not in events.RANKS] if running else list(batch)
        lost = [event for event in running if event.state == "lost"]
        self._running.add(_keys(running))
        lost_keys, ended_keys = _keys(lost), _keys(ended)
        told = self._lost.of(ended_keys + lost_keys) | self._ended.of(ended_keys + lost_keys)
        self._lost.add(lost_keys)
        self._ended.add(ended_keys)
        if not told:
            return ended + lost
        keyed = zip(ended_keys + lost_keys, ended + lost, strict=True)
        return [event for key, event in keyed if key not in told]


class _Keys:
    """The last keys, in two generations: when the young are half of what may be kept, the old are forgotten."""

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._young: set[int] = set()
        self._old: set[int] = set()

    def of(self, keys: list[int]) -> set[int]:
        """Those of `keys` that are kept."""
        return self._young.intersection(keys) | self._old.intersection(keys)

    def add(self, keys: list[int]) -> None:
        self._young.update(keys)
        if len(self._young) >= self._half:
            self._young, self._old = set(), self._young


def _keys(batch: Sequence[RunEvent]) -> list[int]:
    return [hash((event.run, event.attempt)) for event in batch]
