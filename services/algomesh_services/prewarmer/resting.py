"""Which algorithms have nothing to do, and since when: the policy is asked about those that stay so for a moment.

A busy algorithm has nothing to do many times a second, and each time to decide anew how long to keep it would cost more
than its runs. While what was decided before keeps it up anyway, the policy only notes that it rests, and decides once
it has done so for a while. Of a version that tells of one run in many, what lies between two of these is no rest.
"""

from collections.abc import Callable
from typing import Final

from algomesh_services.prewarmer.actions import Action, Hold
from algomesh_services.prewarmer.live_fleet import LiveFleet
from algomesh_services.prewarmer.seen import Policy

_SETTLES_S: Final = 0.02
_KEPT_SETTLES_S: Final = 0.5
_MOST_JUDGED: Final = 8
_WORD_LASTS_S: Final = 0.3
_FOR_EVER: Final = float("inf")


class Resting:
    """The algorithms of which nothing runs. `is_sampled(algorithm)`: it tells of some of its runs only.

    `next_s` is when `settle` has something to do next.
    """

    def __init__(self, policy: Policy, fleet: LiveFleet, is_sampled: Callable[[str], bool]) -> None:
        self._policy, self._fleet, self._is_sampled = policy, fleet, is_sampled
        self._since: dict[str, float] = {}
        self._noted: set[str] = set()
        self._kept: dict[str, tuple[str, float]] = {}
        """The version that a decision keeps up, and until when."""
        self._judged: set[str] = set()
        self.next_s = _FOR_EVER

    def works(self, algorithm: str) -> None:
        """It has begun to do something."""
        if self._since.pop(algorithm, None) is not None:
            self._noted.discard(algorithm)

    def rests(self, algorithm: str, since_s: float, now: float) -> None:
        """It has nothing to do since then."""
        self._since[algorithm] = since_s
        self._noted.discard(algorithm)
        self._look_at(max(now, self._next_look_s(algorithm, since_s, now)))

    def known_before(self, algorithm: str, idle_s: float, now: float) -> None:
        """An instance that has worked was here before us: its algorithm rests since then, unless it was called."""
        if algorithm not in self._judged and algorithm not in self._since:
            self._judged.add(algorithm)
            self.rests(algorithm, idle_s, now)

    def settle(self, now: float) -> list[Action]:
        """What follows for those that have rested for a moment."""
        actions: list[Action] = []
        judged = 0
        self.next_s = _FOR_EVER
        for algorithm, since_s in list(self._since.items()):
            look_s = self._next_look_s(algorithm, since_s, now)
            if look_s > now:
                self._look_at(look_s)
            elif judged >= _MOST_JUDGED or self._may_work(algorithm, now - since_s):
                self._look_at(now)  # in the next turn: what comes in is not to wait for all of them
            else:
                idle_s = max(since_s, self._fleet.idle_since_s(algorithm) or since_s)
                if self._is_kept(algorithm, now) and now - since_s < _KEPT_SETTLES_S:
                    self._noted.add(algorithm)
                    self._policy.rests(algorithm, idle_s)
                    self._look_at(self._next_look_s(algorithm, since_s, now))
                    continue
                self.works(algorithm)
                self._judged.add(algorithm)
                judged += 1
                actions += self._judge(algorithm, idle_s, now)
        return actions

    def forget_kept(self, now: float) -> None:
        """Forget decisions that are over."""
        self._kept = {algorithm: kept for algorithm, kept in self._kept.items() if kept[1] > now}

    def _judge(self, algorithm: str, idle_s: float, now: float) -> list[Action]:
        actions = self._policy.idle(algorithm, idle_s)
        holds = (each.until_s for each in actions if isinstance(each, Hold) and each.start_s <= now)
        self._kept[algorithm] = self._fleet.current(algorithm), max(holds, default=0.0)
        return actions

    def _next_look_s(self, algorithm: str, since_s: float, now: float) -> float:
        """When to look at it next."""
        if self._is_kept(algorithm, now) and (algorithm in self._noted or self._is_sampled(algorithm)):
            return min(since_s + _KEPT_SETTLES_S, self._kept[algorithm][1] - _KEPT_SETTLES_S)
        return since_s + _SETTLES_S

    def _is_kept(self, algorithm: str, now: float) -> bool:
        """Whether nothing is lost by deciding later."""
        version, until_s = self._kept.get(algorithm, ("", 0.0))
        return until_s > now + _KEPT_SETTLES_S and version == self._fleet.current(algorithm)

    def _may_work(self, algorithm: str, idle_s: float) -> bool:
        """Whether something may run that was not told of: a launcher's word is a little old, and counts for a while."""
        if not self._fleet.is_working(algorithm):
            return False
        return idle_s < _WORD_LASTS_S or self._is_sampled(algorithm)

    def _look_at(self, at_s: float) -> None:
        self.next_s = min(self.next_s, at_s)
