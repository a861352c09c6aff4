"""What the sender of a chain of steps must know of it: who may answer, whose deaths matter, how often it may be sent.

A plain call is a chain of one. Made from the route alone, once, and kept.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from algomesh_broker import subjects
from algomesh_broker.names import VersionId
from algomesh_broker.route import END, AllStep, CallStep, EachStep, Route

ANYWHERE: Final = -1
_DEFAULT_ATTEMPTS: Final = 3


class Chain(NamedTuple):
    """`answerers`: what the subject of an answer begins with; `stages`: the version at each step; `attempts`: how
    often it may be sent when it was lost at a step, which depends on what has run by then; ANYWHERE when nobody
    knows where it was. `after`: the versions that come after the first step.
    """

    answerers: frozenset[str]
    stages: dict[int, VersionId]
    attempts: dict[int, int]
    after: list[str]


def chain_of_call(version: VersionId, attempts: int, after: Sequence[str] = ()) -> Chain:
    """A call of one version."""
    answerers = frozenset([subjects.replies_of(version.caller)])
    return Chain(answerers, {ANYWHERE: version}, {ANYWHERE: attempts}, list(after))


def chain_alone(route: Route, at: int) -> Chain:
    """Step `at` of a route, sent as a plain call."""
    return chain_of_call(route.places[at].version, _attempts(route, at), route.after(at))


def chain_of_route(route: Route, at: int) -> Chain:
    """The chain that begins at step `at` of a route."""
    stages: dict[int, VersionId] = {}
    attempts: dict[int, int] = {}
    fewest, here, after = _attempts(route, at), at, route.after(at)
    while at != END:
        step = route.steps[at]
        fewest = min(fewest, _attempts(route, at))
        if isinstance(step, CallStep):
            here = at
            stages[at] = route.places[at].version
        # What fans out after a call is that call's instance's to join: lost there, the branches have begun too.
        attempts[here] = fewest
        at = step.next
    attempts[ANYWHERE] = fewest
    return Chain(frozenset(subjects.replies_of(stage.caller) for stage in stages.values()), stages, attempts, after)


def _attempts(route: Route, at: int) -> int:
    """The fewest attempts that anything in this step, and below it, allows."""
    step = route.steps[at]
    match step:
        case CallStep():
            return _DEFAULT_ATTEMPTS if step.attempts is None else step.attempts
        case AllStep():
            return min(_attempts_along(route, branch) for branch in step.branches)
        case EachStep():
            return _attempts_along(route, step.body)


def _attempts_along(route: Route, at: int) -> int:
    fewest = _attempts(route, at)
    while (at := route.steps[at].next) != END:
        fewest = min(fewest, _attempts(route, at))
    return fewest
