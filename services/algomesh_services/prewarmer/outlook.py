"""How far what is still cold will put off what comes after it: the delays of a request, looked ahead.

A load that cannot be done in time holds up all that its caller does next, and a start just in time for a warm run would
be too early for that, or its hold over before the call comes. So likely calls are gone through in the order in which
they would come, each late by its own load if that is not ready, and by what it has to wait for before.
"""

from collections.abc import Callable

from algomesh_services.prewarmer.requests import Record, Request

_MOST_DEPTH = 16  # ancestors that are told of a delay: deeper ones hear of it when it comes nearer


class Outlook:
    """The delays of the calls to come of one request, told one by one in the order in which they would come."""

    __slots__ = ("_after", "_below", "_beside", "_parents", "_record", "_request")

    def __init__(self, request: Request, record: Record, beside: Callable[[str], float]) -> None:
        self._request = request
        self._record = record
        self._beside = beside
        self._after: dict[str, float] = {}
        self._below: dict[str, float] = {}
        self._parents: dict[str, str] = {}

    def caller(self, parent: str) -> Record:
        """The latest call of the algorithm that is to call it, as far as it is under way; else the present call."""
        return self._request.by_algorithm.get(parent, self._record)

    def before_s(self, parent: str) -> float:
        """Seconds by which a call that `parent` is to make will come later than in a warm run."""
        own_s = self._after.get(parent)
        if own_s is None:
            record = self.caller(parent)
            own_s, all_s = record.delay_s, record.expected_delay_s()
            parent = record.algorithm
        else:
            all_s = own_s
        all_s = max(all_s, self._below.get(parent, 0.0))
        return all_s if all_s <= own_s else own_s + (1.0 - self._beside(parent)) * (all_s - own_s)

    def tell(self, name: str, parent: str, delay_s: float) -> None:
        """A call of `name` by `parent` is going to start so many seconds later than in a warm run."""
        self._after[name] = delay_s
        if parent not in self._after:
            parent = self.caller(parent).algorithm
        self._parents[name] = parent
        for _ in range(_MOST_DEPTH):
            if self._below.get(parent, 0.0) >= delay_s:
                break
            self._below[parent] = delay_s
            above = self._parents.get(parent)
            if above is None:
                record = self._request.by_algorithm.get(parent)
                if record is None or record.parent is None:
                    break
                above = record.parent.algorithm
            if above == parent:
                break
            parent = above
