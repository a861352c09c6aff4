"""How often somebody may present keys that the mesh does not know: pure, time is an argument.

A refused key is remembered for a moment, so that a client that tries again and again with one wrong key costs
nats-server nothing; and each address may have so many keys refused, so that guessing cannot flood it either.
"""

from collections import OrderedDict
from typing import Final

from algomesh import errors

REMEMBERED_S: Final = 2.0
BURST: Final = 50.0
PER_SECOND: Final = 5.0
_MOST: Final = 10_000


class Refusals:
    """Refused keys, by their digest, and what each address has left."""

    def __init__(self) -> None:
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, digest: bytes, now: float) -> None:
        """Raises Unauthenticated when this key was refused a moment ago."""
        refused_at = self._refused.get(digest)
        if refused_at is None:
            return
        if now - refused_at < REMEMBERED_S:
            raise unknown_key()
        del self._refused[digest]

    def begin(self, address: str, now: float) -> None:
        """A key of `address` will be tried. Raises Overloaded when too many of them were refused lately."""
        left, at = self._buckets.pop(address, (BURST, now))
        left = min(BURST, left + (now - at) * PER_SECOND)
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > _MOST:
            self._buckets.popitem(last=False)
        if left < 1:
            raise errors.Overloaded("too many keys of your address were refused; wait a moment and check your key")

    def accepted(self, address: str) -> None:
        """The key tried was not refused: it costs the address nothing."""
        if address in self._buckets:
            left, at = self._buckets[address]
            self._buckets[address] = (min(BURST, left + 1), at)

    def refused(self, digest: bytes, now: float) -> None:
        """The mesh does not know this key."""
        self._refused[digest] = now
        self._refused.move_to_end(digest)
        while len(self._refused) > _MOST:
            self._refused.popitem(last=False)


def unknown_key() -> errors.Unauthenticated:
    """The refusal as the caller reads it."""
    return errors.Unauthenticated("the mesh does not know this key; `algomesh key create` makes one")
