"""A pipeline's route as it travels: a flat list of steps, every version resolved, the same bytes from end to end.

The sender makes it once (`encode`), has it signed (grants.py), and each envelope says with `at` which step it is
for. Who hands over to a step, and who waits for a branch's answer, follows from the route alone, so a receiver can
check both without asking anybody:

    clean | (sentiment & topics | merge)      steps: 0 clean → 1 all[2, 3] → 4 merge; 2 sentiment; 3 topics

`clean` is sent by the head, the sender of the whole; clean's instance sends 2 and 3, joins their answers and hands
over to 4; merge answers the head.
"""

from functools import cached_property
from typing import Final

import msgspec
from msgspec import Struct

from algomesh_broker.errors import BadMessage, BadName
from algomesh_broker.names import VersionId

END: Final = -1
HEAD: Final = -1
MOST_STEPS: Final = 4096
_DEEPEST: Final = 64
_MOST_ATTEMPTS: Final = 100
_MOST_AFTER: Final = 64


class CallStep(Struct, frozen=True, array_like=True, tag="c"):
    """Run one version. Options that are None are the version's own; times in seconds, `cache_s` 0 is no cache.

    `takes_parts`: it reads its input as it is yielded by the step before.
    """

    version: str
    next: int = END
    timeout_s: float | None = None
    attempts: int | None = None
    cache_s: float | None = None
    takes_parts: bool = False


class AllStep(Struct, frozen=True, array_like=True, tag="a"):
    """Give the same input to every branch; the result is a list, or a mapping where there are `names`."""

    branches: list[int]
    next: int = END
    names: list[str] = []


class EachStep(Struct, frozen=True, array_like=True, tag="e"):
    """Give every item of a list to `body`, at most `in_flight` at once; `ordered` keeps the list's order."""

    body: int
    next: int = END
    in_flight: int = 8
    ordered: bool = True


Step = CallStep | AllStep | EachStep


class _Steps(Struct, frozen=True, array_like=True, tag="route"):
    steps: list[Step]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Steps).decode


class Place:
    """What a receiver must know of one call step: which version, who hands over to it, who waits for its answer.

    `forwarders` and `joiner` are steps; HEAD is the sender of the whole pipeline.
    """

    __slots__ = ("forwarder", "joiner", "next", "step", "version")

    def __init__(self, step: CallStep, forwarder: int, joiner: int) -> None:
        self.step = step
        self.version = VersionId.parse(step.version)
        self.next = step.next
        self.forwarder = forwarder
        self.joiner = joiner


class Route:
    """A route that has been checked. `data` is its wire form."""

    def __init__(self, steps: list[Step], data: bytes | None = None) -> None:
        """Check `steps`. Raises BadMessage for a route that loops, crosses itself, or names no version."""
        if not 0 < len(steps) <= MOST_STEPS:
            raise BadMessage(f"a route has 1 to {MOST_STEPS} steps; this one has {len(steps)}")
        self.steps = steps
        self.data = _encode(_Steps(steps)) if data is None else data
        self.places: dict[int, Place] = {}
        self._after: dict[int, list[str]] = {}
        try:
            walked = _walk(self, 0, HEAD, HEAD, 0)
        except BadName as error:
            raise BadMessage(f"a route's step is no version: {error}") from error
        if walked != len(steps):
            raise BadMessage("a route has steps that nothing leads to")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> "Route":
        """Read the wire form. Raises BadMessage."""
        try:
            return cls(_decode(data).steps, bytes(data))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
            raise BadMessage(f"not a route: {error}") from error

    @cached_property
    def versions(self) -> list[VersionId]:
        """Every version on the route, once."""
        return list(dict.fromkeys(place.version for place in self.places.values()))

    @cached_property
    def needs_grant(self) -> bool:
        """Whether anybody but the sender sends a step of it, or must know what the route says of its step."""
        return any(
            place.forwarder != HEAD or place.step.timeout_s is not None or bool(place.step.cache_s)
            for place in self.places.values()
        )

    @cached_property
    def is_plain_chain(self) -> bool:
        """Whether it is one call after another, and no result of them is to be kept."""
        return all(isinstance(step, CallStep) and not step.cache_s for step in self.steps)

    def after(self, at: int) -> list[str]:
        """The versions that may yet run when step `at` does, the 64 nearest; what runs beside it is not among them."""
        known = self._after.get(at)
        if known is None:
            found: dict[str, None] = {}
            step = at
            while step != END:
                self._gather(self.steps[step].next, found)
                step = self._above.get(step, END)
            known = self._after[at] = list(found)[:_MOST_AFTER]
        return known

    def _gather(self, at: int, found: dict[str, None]) -> None:
        """Every version from step `at` on, in the order in which they come."""
        while at != END:
            step = self.steps[at]
            if isinstance(step, CallStep):
                found.setdefault(step.version)
            else:
                for branch in _branches(step):
                    self._gather(branch, found)
            at = step.next

    @cached_property
    def _above(self) -> dict[int, int]:
        """The step that joins the branch in which a step lies."""
        above: dict[int, int] = {}
        for owner, step in enumerate(self.steps):
            for branch in [] if isinstance(step, CallStep) else _branches(step):
                inside = branch
                while inside != END:
                    above[inside] = owner
                    inside = self.steps[inside].next
        return above

    def caller_of(self, step: int, sender: str) -> str:
        """Who acts at `step`: `owner~name` of its version, or `sender` for HEAD."""
        return sender if step == HEAD else self.places[step].version.caller

    def may_act(self, step: int, caller: str, sender: str) -> bool:
        """Whether `caller` acts at `step`, or in its place.

        The sender of the whole may, since every step is his to call: he goes on where an instance has answered him that
        cannot join what fans out after it. A step whose results are kept may be left out by whoever would have handed
        over to it, and so on.
        """
        while caller not in (sender, self.caller_of(step, sender)):
            if step == HEAD or not self.places[step].step.cache_s:
                return False
            step = self.places[step].forwarder
        return True


def _walk(route: Route, at: int, forwarder: int, joiner: int, depth: int) -> int:
    """Follow one chain: who acts before each step, and below whom its branches join. Return how many steps it has."""
    if depth > _DEEPEST:
        raise BadMessage(f"a route is nested more than {_DEEPEST} deep")
    if at == END:
        raise BadMessage("a route's branch has no step")
    own = below = 0
    while at != END:
        own += 1
        if not 0 <= at < len(route.steps) or own > len(route.steps) or at in route.places:
            raise BadMessage("a route's steps do not lead to its end")
        step = route.steps[at]
        if isinstance(step, CallStep):
            _check_call(step)
            route.places[at] = Place(step, forwarder, joiner)
            forwarder = at
        else:
            for branch in _branches(step):
                below += _walk(route, branch, forwarder, forwarder, depth + 1)
        at = step.next
    return own + below


def _check_call(step: CallStep) -> None:
    timeout_s, attempts, cache_s = step.timeout_s, step.attempts, step.cache_s
    # Each is written so that a NaN fails it too.
    if not (
        (timeout_s is None or timeout_s > 0)
        and (attempts is None or 1 <= attempts <= _MOST_ATTEMPTS)
        and (cache_s is None or cache_s >= 0)
    ):
        raise BadMessage("a route's step has a timeout, attempts or a time in the cache that nobody can keep")


def _branches(step: AllStep | EachStep) -> list[int]:
    if isinstance(step, EachStep):
        if step.in_flight < 1:
            raise BadMessage("a route's each has no room for a single item")
        return [step.body]
    if not step.branches or (step.names and len(set(step.names)) != len(step.branches)):
        raise BadMessage("a route's branches do not fit their names")
    return step.branches
