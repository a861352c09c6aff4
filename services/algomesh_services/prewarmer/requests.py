"""The requests that are under way: which calls they made, and how long cold starts have held them up so far.

Delays are learned as those of a warm run, else a cold mesh would teach itself long delays and start too late ever
after. Each call has the delay that waits before it have caused: that of its parent, or of an elder sibling whose calls
had all begun when this one was made; a wait beside it, in a parallel branch, did not hold it up.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import pairwise

from algomesh_services.prewarmer.counts import Context, Later
from algomesh_services.prewarmer.exposure import Load

MOST_CALLS = 64
"""Calls of a request that are remembered. What comes more than 64 calls later is not predicted from here: a call
re-plans, and 64 hops are ahead of any load that is worth starting ahead."""

MOST_OPEN = 20_000  # requests; the longest silent goes first. A request is about 2 kB.

FORGOTTEN_AFTER_S = 3600.0
"""A request that made no call for an hour of event time is forgotten. That loses what it would have taught about its
further calls, and nothing else; its holds have ended by then or are released."""

_MOST_ATTEMPTS = 16 * MOST_CALLS  # an echo of a call comes within seconds, if at all
_MOST_DEPTH = 64  # ancestors that hear of a wait: as many as calls are remembered


class Record:
    """One call of a request."""

    __slots__ = (
        "algorithm",
        "at_s",
        "behind",
        "below_s",
        "contexts",
        "delay_s",
        "index",
        "is_beside",
        "load",
        "parent",
        "pending",
        "ready_s",
        "route",
        "standby",
        "step",
        "waited_s",
        "warm_s",
    )

    def __init__(self, index: int, algorithm: str, parent: "Record | None", warm_s: float, delay_s: float) -> None:
        self.index = index
        self.algorithm = algorithm
        self.parent = parent
        self.at_s = 0.0
        self.step: tuple[str, int] | None = None
        self.route: tuple[str, ...] = ()
        """Of a step of a pipeline: which one it is, and which algorithms may still come."""
        self.behind: tuple[Record, ...] = ()
        """The steps just before it, which do not call it, but hand over."""
        self.warm_s = warm_s
        """When it would have been called, had nobody waited."""
        self.delay_s = delay_s
        """What had been waited when it started, its own wait included."""
        self.ready_s = 0.0
        """When it starts, or is expected to; `waited_s` after it was called."""
        self.waited_s = 0.0
        self.below_s = 0.0
        self.pending: list[tuple[float, float]] = []
        self.contexts: tuple[Context, ...] = ()
        self.is_beside: bool | None = None
        """Whether it was called while another call of its parent waited; None where none had to."""
        self.load: Load | None = None
        """Of the first call of an algorithm in its request."""
        self.standby = 0.0
        """GPU weight of what stands by while this call waits for another: itself and its ancestors."""

    def settled_delay_s(self, at_s: float) -> float:
        """Delay of a call that this one makes at `at_s`, after what had begun below it by then."""
        if self.pending:
            waiting = []
            for ready_s, delay_s in self.pending:
                if ready_s <= at_s:
                    self.below_s = max(self.below_s, delay_s)
                else:
                    waiting.append((ready_s, delay_s))
            self.pending = waiting
        return max(self.delay_s, self.below_s)

    def expected_delay_s(self) -> float:
        """Delay of a call that this one will make, after all that is under way below it."""
        settled_s = max(self.delay_s, self.below_s)
        return max(settled_s, max(self.pending, key=_delay_s)[1]) if self.pending else settled_s


class Request:
    """A request under way."""

    __slots__ = (
        "attempts", "began_s", "by_algorithm", "caller", "last_s", "path", "plans", "records", "root", "route",
        "to_weigh",
    )  # fmt: skip

    def __init__(self, root: str, caller: str | None, at_s: float) -> None:
        self.root = root
        self.caller = caller
        self.began_s = at_s
        self.last_s = at_s
        self.records: OrderedDict[int, Record] = OrderedDict()
        self.by_algorithm: dict[str, Record] = {}
        self.path: deque[str] = deque(maxlen=3)
        self.attempts: OrderedDict[int, int] = OrderedDict()
        """The highest attempt of each call, by index; of more calls than are remembered, so that echoes are known."""
        self.plans: dict[str, Plan] = {}
        self.route: tuple[str, ...] = ()
        self.to_weigh = MOST_CALLS
        """How many algorithms that may come the next call may weigh, beside those that every call may."""

    def add(
        self,
        index: int,
        parent: int,
        algorithm: str,
        at_s: float,
        ready_s: float,
        step: tuple[str, int] | None = None,
        route: tuple[str, ...] = (),
    ) -> Record:
        """A call was made; `ready_s` is when it starts. `step` and `route`: of a pipeline, as actions.Call has them."""
        above = self.records.get(parent)
        behind = self._behind(algorithm, step, at_s)
        is_beside: bool | None = None
        if above is not None:
            before_s = above.settled_delay_s(at_s)
            if above.pending:
                is_beside = True
            elif above.below_s > above.delay_s:
                is_beside = False
        elif behind:
            before_s = max(one.settled_delay_s(at_s) for one in behind)
        elif self.records:  # its parent was lost or is long ago: behind the last call, as nothing else is known
            before_s = next(reversed(self.records.values())).delay_s
        else:
            before_s = 0.0
        waited_s = max(0.0, ready_s - at_s)
        delay_s = before_s + waited_s
        record = Record(index, algorithm, above, at_s - before_s, delay_s)
        record.at_s, record.step, record.route, record.behind = at_s, step, route, behind
        record.ready_s, record.waited_s = at_s + waited_s, waited_s
        record.is_beside = is_beside
        if delay_s > before_s:
            ancestor = above
            for _ in range(_MOST_DEPTH):
                if ancestor is None:
                    break
                ancestor.pending.append((ready_s, delay_s))
                ancestor = ancestor.parent
        elif above is not None and delay_s > above.below_s:
            above.below_s = delay_s
        self.records[index] = record
        self.by_algorithm[algorithm] = record
        self.path.append(algorithm)
        self.last_s = max(self.last_s, at_s)
        return record

    def _behind(self, algorithm: str, step: tuple[str, int] | None, at_s: float) -> tuple[Record, ...]:
        """The steps just before a step: those that go on to it and of which the least is left.

        In a chain that is one, after a fan-out all that were joined.
        """
        if step is None or step[1] == 0:
            return ()
        found: dict[str, Record] = {}
        for one in self.records.values():
            if one.step is not None and one.step[0] == step[0] and algorithm in one.route and one.at_s <= at_s:
                found[one.algorithm] = one
        least = min((len(one.route) for one in found.values()), default=0)
        return tuple(one for one in found.values() if len(one.route) == least)

    def started(self, index: int, ready_s: float) -> None:
        """A call has started, at another time than was expected when it was made."""
        record = self.records.get(index)
        if record is None or ready_s == record.ready_s:
            return
        expected = record.ready_s, record.delay_s
        waited_s = max(0.0, record.waited_s + ready_s - record.ready_s)
        record.delay_s += waited_s - record.waited_s
        record.ready_s, record.waited_s = ready_s, waited_s
        ancestor = record.parent
        for _ in range(_MOST_DEPTH):
            if ancestor is None:
                break
            if expected in ancestor.pending:
                ancestor.pending.remove(expected)
            elif ancestor.below_s >= expected[1] and waited_s == 0.0:
                break  # settled already: what was called meanwhile has been placed by it
            ancestor.pending.append((ready_s, record.delay_s))
            ancestor = ancestor.parent

    def saw(self, index: int, attempt: int) -> None:
        """This attempt of a call was seen."""
        self.attempts[index] = attempt
        if len(self.attempts) > _MOST_ATTEMPTS:
            self.attempts.popitem(last=False)

    def full(self) -> Record | None:
        """The oldest call, once more are remembered than should be: to be learned from and dropped with `drop`."""
        return next(iter(self.records.values())) if len(self.records) > MOST_CALLS else None

    def drop(self, record: Record) -> None:
        """Forget a call."""
        del self.records[record.index]
        record.parent, record.behind = None, ()
        if self.by_algorithm.get(record.algorithm) is record:
            del self.by_algorithm[record.algorithm]

    def after(self, record: Record) -> list[Later]:
        """What was called after the oldest call: the first call of each algorithm."""
        first: dict[str, Record] = {}
        for other in self.records.values():
            if other is not record:
                first.setdefault(other.algorithm, other)
        return [later_of(record, other) for other in first.values()]

    def lessons(self) -> Iterator[tuple[Record, list[Later]]]:
        """Each call, latest first, with what was called after it: the first call of each algorithm.

        What was told late has its place by when it was called, and steps of pipelines theirs behind one another.
        """
        records = list(self.records.values())
        if any(this.at_s > following.at_s for this, following in pairwise(records)):
            records.sort(key=_at_s)
        for record in records:
            if record.step is not None:
                record.behind = self._behind(record.algorithm, record.step, record.at_s)
        first: dict[str, Record] = {}
        for record in reversed(records):
            yield record, [later_of(record, other) for other in first.values()]
            first[record.algorithm] = record


def _delay_s(waiting: tuple[float, float]) -> float:
    return waiting[1]


def _at_s(record: Record) -> float:
    return record.at_s


def later_of(record: Record, other: Record) -> Later:
    """What `other` teaches about `record`, after which it was called. A step comes from the step before it."""
    if other.behind:
        parent, is_child = other.behind[-1].algorithm, record in other.behind
    else:
        parent, is_child = other.parent.algorithm if other.parent is not None else "", other.parent is record
    return Later(other.algorithm, max(0.0, other.warm_s - record.warm_s), parent, is_child)


class Plan:
    """What is wished for one algorithm in one request, and when it would have been started, had it been off."""

    __slots__ = ("from_off_s", "hop", "start_s", "until_s", "was_off")

    def __init__(self, start_s: float, until_s: float, *, from_off_s: float, hop: Record | None, was_off: bool) -> None:
        self.start_s = start_s
        self.until_s = until_s
        self.from_off_s = from_off_s
        self.hop = hop
        """The call at which it was to start at once; None while its start lies ahead."""
        self.was_off = was_off


class Requests:
    """The open requests by id, and the ids of those that ended lately."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self.most = most
        self._open: OrderedDict[str, Request] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, request: str) -> Request | None:
        """The request, if it is under way and known; it counts as heard of."""
        found = self._open.get(request)
        if found is not None:
            self._open.move_to_end(request)
        return found

    def has_ended(self, request: str) -> bool:
        """Whether it ended lately: what still arrives of it is late."""
        return request in self._ended

    def open(self, request: str, root: str, caller: str | None, at_s: float) -> Request:
        """A new request."""
        opened = self._open[request] = Request(root, caller, at_s)
        return opened

    def end(self, request: str) -> Request | None:
        """It has ended."""
        self._ended[request] = None
        while len(self._ended) > self.most:
            self._ended.popitem(last=False)
        return self._open.pop(request, None)

    def forgotten(self, at_s: float) -> list[tuple[str, Request]]:
        """Those to forget now: silent for too long, or too many. They are open no longer."""
        gone = []
        while self._open:
            request, oldest = next(iter(self._open.items()))
            if len(self._open) <= self.most and at_s - oldest.last_s <= FORGOTTEN_AFTER_S:
                break
            del self._open[request]
            gone.append((request, oldest))
        return gone
