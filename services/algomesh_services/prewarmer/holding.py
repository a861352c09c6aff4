"""The holds that are wished for now, and what of them launchers must be told.

Many requests may wish for the same version at once, and one instance serves them all: launchers are told of as few
holds as cover the same time. What is wished for but may not be (permits, budgets) stays here until it may, or is over.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from algomesh_broker import messages
from algomesh_services.prewarmer.actions import Why

# From a hold's start to the beginning of the load: the message, the launcher's turn, the fork. Measured: 10 to 30 ms.
LEAD_S: Final = 0.04

NO_HURRY_S: Final = 0.2
"""What may be told a little later is told together. Launchers keep what is held no longer for a quarter of a second."""

_MOST_TOLD = 4_000  # in one message, which some servers hold to 1 MiB
_MOST_WISHES = 200_000
_MOST_REMEMBERED = 50_000


class Wish(NamedTuple):
    """One hold. `callers` are those in its request who may want it; `is_signed`: the registry signed its route."""

    algorithm: str
    key: str
    version: str
    start_s: float
    until_s: float
    why: Why
    reason: str
    gain: float = 0.0
    after: str = ""
    caller: str = ""
    callers: tuple[str, ...] = ()
    is_signed: bool = False


class Wishes:
    """All wishes. `may` says whether launchers may be told of one, now; `place` which launcher is to have a version,
    given when it is to be up from, and the time.
    """

    def __init__(self, may: Callable[[Wish], bool], place: Callable[[str, float, float], str] = lambda *_: "") -> None:
        self._may, self._place = may, place
        self._by_key: OrderedDict[tuple[str, str], Wish] = OrderedDict()
        self._of_version: dict[str, dict[str, Wish]] = {}
        self._versions: dict[str, set[str]] = {}
        self._told: dict[str, dict[str, Wish]] = {}
        self._changed: set[str] = set()
        self._can_wait: set[str] = set()
        """Of these, the versions that were found to be in no hurry."""
        self._remembered: OrderedDict[tuple[str, str], Wish] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def put(self, wish: Wish) -> None:
        """Wish for this, in the place of what has the same algorithm and key."""
        self.release(wish.algorithm, wish.key)
        self._by_key[wish.algorithm, wish.key] = wish
        self._of_version.setdefault(wish.version, {})[wish.key] = wish
        self._versions.setdefault(wish.algorithm, set()).add(wish.version)
        self._changed.add(wish.version)
        if len(self._by_key) > _MOST_WISHES:
            self.release(*next(iter(self._by_key)))

    def release(self, algorithm: str, key: str) -> None:
        """Wish for this no more."""
        wish = self._by_key.pop((algorithm, key), None)
        if wish is None:
            return
        of_version = self._of_version[wish.version]
        del of_version[key]
        if not of_version:
            del self._of_version[wish.version]
            self._versions[algorithm].discard(wish.version)
            if not self._versions[algorithm]:
                del self._versions[algorithm]
        self._changed.add(wish.version)

    def look_again(self, algorithms: Iterable[str]) -> None:
        """What may be of these algorithms has changed."""
        for algorithm in algorithms:
            self._changed |= self._versions.get(algorithm, set())

    def told(self, version: str, key: str) -> Wish | None:
        """The wish that launchers were told of, lately, under this key."""
        return self._remembered.get((version, key))

    def is_held(self, version: str, at_s: float) -> bool:
        """Whether launchers were told to have it up at that moment."""
        return any(wish.start_s <= at_s <= wish.until_s for wish in self._told.get(version, {}).values())

    @property
    def is_changed(self) -> bool:
        """Whether there may be something to tell."""
        return bool(self._changed)

    def is_urgent(self, now: float, is_up: Callable[[str], bool]) -> bool:
        """Whether what has changed may make a difference within `NO_HURRY_S`.

        Not of a version that is up, and of which launchers were told that it is held for longer than that.
        """
        for version in self._changed - self._can_wait:
            if not self._stays(version, now) or not is_up(version):
                return True
            self._can_wait.add(version)
        return False

    def _stays(self, version: str, now: float) -> bool:
        told = self._told.get(version)
        return told is not None and any(
            wish.start_s <= now and wish.until_s > now + 2 * NO_HURRY_S for wish in told.values()
        )

    def changes(self, now: float) -> messages.Holds | None:
        """What has changed since launchers were told last; None when nothing has."""
        holds: list[messages.Hold] = []
        released: list[tuple[str, str]] = []
        for version in self._changed:
            before, after = self._told.get(version, {}), self._cover(version, now)
            released += [(version, key) for key in before if key not in after]
            changed = [wish for key, wish in after.items() if before.get(key) != wish]
            holds += self._holds(version, after, changed, now)
            self._tell(version, after)
        self._changed.clear()
        self._can_wait.clear()
        if not holds and not released:
            return None
        return messages.Holds(holds=holds, released=released)

    def whole(self, now: float, off: list[str]) -> messages.Holds:
        """Everything that is to be held; what has passed is forgotten."""
        for (algorithm, key), wish in list(self._by_key.items()):
            if wish.until_s <= now:
                self.release(algorithm, key)
        covers = {version: self._cover(version, now) for version in self._of_version}
        wishes = [wish for cover in covers.values() for wish in cover.values()]
        if len(wishes) > _MOST_TOLD:
            wishes = sorted(wishes, key=lambda wish: wish.gain, reverse=True)[:_MOST_TOLD]
        self._told.clear()
        self._changed.clear()
        self._can_wait.clear()
        for version, cover in covers.items():
            self._tell(version, cover)
        kept = set(wishes)
        holds = [
            hold
            for version, cover in covers.items()
            for hold in self._holds(version, cover, [wish for wish in cover.values() if wish in kept], now)
        ]
        return messages.Holds(holds=holds, is_whole=True, off=off)

    def _holds(self, version: str, cover: dict[str, Wish], wishes: list[Wish], now: float) -> list[messages.Hold]:
        """What launchers are told of these, which are all of one version, or part of all."""
        if not wishes:
            return []
        launcher = self._place(version, min(wish.start_s for wish in cover.values()), now)
        return [_hold(wish, now, launcher) for wish in wishes]

    def _tell(self, version: str, cover: dict[str, Wish]) -> None:
        if cover:
            self._told[version] = cover
        else:
            self._told.pop(version, None)
        for wish in cover.values():
            self._remembered[version, wish.key] = wish
        while len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)

    def _cover(self, version: str, now: float) -> dict[str, Wish]:
        """As few of the wishes for a version as hold it for the same time, and those with the highest gain."""
        wishes = [wish for wish in self._of_version.get(version, {}).values() if wish.until_s > now and self._may(wish)]
        if len(wishes) > 2:
            begun = [wish for wish in wishes if wish.start_s <= now]
            best = [max(each, key=_gain) for each in (wishes, begun) if each]
            wishes = [*_fewest(wishes, now), *best]
        return {wish.key: wish for wish in wishes}


def _fewest(wishes: list[Wish], now: float) -> list[Wish]:
    """The fewest intervals that cover the same time: of those that begin while it is covered, the one that lasts."""
    wishes.sort(key=lambda wish: (max(now, wish.start_s), -wish.until_s))
    chosen: list[Wish] = []
    covered_s, longest = float("-inf"), None
    for wish in wishes:
        if longest is not None and max(now, wish.start_s) > covered_s:
            chosen.append(longest)
            covered_s, longest = longest.until_s, None
        if wish.until_s > (covered_s if longest is None else longest.until_s):
            longest = wish
    if longest is not None:
        chosen.append(longest)
    return chosen


def _gain(wish: Wish) -> float:
    return wish.gain


def _hold(wish: Wish, now: float, launcher: str) -> messages.Hold:
    return messages.Hold(
        version=wish.version,
        key=wish.key,
        start_ms=max(0, round((wish.start_s - LEAD_S - now) * 1000)),
        until_ms=max(0, round((wish.until_s - now) * 1000)),
        reason=wish.reason,
        gain=wish.gain,
        caller=wish.caller,
        launcher=launcher,
    )
