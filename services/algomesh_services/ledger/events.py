"""What a batch of events is worth: pure.

A subject is held by the broker, a body is only a claim. An instance may tell of runs of its own version, a caller
of runs that it sent itself; whatever else a batch says is dropped. Of two events about one attempt of one run the more
final one counts: running, then lost, then any other end; of two ends the first. What the other one knows and this
one does not (a start, a compute time) is taken from it.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec.structs import replace

from algomesh_broker import codec
from algomesh_broker.errors import BadMessage
from algomesh_broker.messages import RunEvent

RANKS: Final = {"running": 0, "lost": 1}
FINAL: Final = 2
_LONGEST_ID: Final = 64
_ID_BYTES: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_ID: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{_LONGEST_ID}}}", re.ASCII)
_CALLER: Final = re.compile(r"[a-z0-9_~-]{1,128}", re.ASCII)
_NAMED: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}/[a-z][a-z0-9_-]{0,62}", re.ASCII)
_VERSION: Final = re.compile(r"\d{1,6}\.\d{1,6}\.\d{1,6}", re.ASCII)
_LONGEST_ERROR: Final = 1_000
_AHEAD_S: Final = 60.0
_MOST_ATTEMPTS: Final = 1_000_000
_NAMES_REMEMBERED: Final = 4_096


class Taken(NamedTuple):
    """What one message gave, and how many events in it were dropped."""

    events: list[RunEvent]
    dropped: int


def read(subject: str, data: bytes | memoryview, now: float) -> Taken:
    """The events of one message that its subject allows. Raises BadMessage when it is none.

    now: seconds since the epoch; no event is later than a minute after it.
    """
    expected = _expected(subject)
    runs = codec.decode_events(data).runs
    latest = now + _AHEAD_S
    if _are_good(runs, expected, latest):
        return Taken(runs, 0)
    events = [
        event if _is_time(event, latest) and (not event.error or _is_text(event.error)) else _possible(event, latest)
        for event in runs
        if _is_allowed(event, *expected)
    ]
    return Taken(events, len(runs) - len(events))


def merged(events: Sequence[RunEvent]) -> list[RunEvent]:
    """At most one event for each attempt of each run."""
    if len({event.run for event in events}) == len(events):
        return list(events)
    known: dict[tuple[str, int], RunEvent] = {}
    for event in events:
        key = (event.run, event.attempt)
        before = known.get(key)
        if before is None:
            known[key] = event
        elif (before.algorithm, before.version, before.caller) == (event.algorithm, event.version, event.caller):
            known[key] = merge(before, event)
    return list(known.values())


def merge(before: RunEvent, event: RunEvent) -> RunEvent:
    """What both events say together; `before` was heard first."""
    first, second = (event, before) if rank(event) > rank(before) else (before, event)
    return replace(
        first,
        root=first.root or second.root,
        parent=first.parent or second.parent,
        root_caller=first.root_caller or second.root_caller,
        instance=first.instance or second.instance,
        queued_at=first.queued_at or second.queued_at,
        started_at=first.started_at or second.started_at,
        ended_at=first.ended_at or second.ended_at,
        compute_ms=first.compute_ms or second.compute_ms,
        cold_ms=first.cold_ms or second.cold_ms,
        error=first.error or (second.error if first.state == second.state else ""),
    )


def rank(event: RunEvent) -> int:
    """How final an event is."""
    return RANKS.get(event.state, FINAL)


@lru_cache(_NAMES_REMEMBERED)
def _expected(subject: str) -> tuple[str, str, str]:
    """The algorithm and version, or the caller, that a subject stands for; the others are empty. Raises BadMessage."""
    tokens = subject.split(".")
    if tokens[:2] == ["event", "run"] and len(tokens) == 5:
        owner, name, version = tokens[2:]
        return f"{owner}/{name}", version.replace("-", "."), ""
    if tokens[:2] == ["event", "caller"] and len(tokens) == 3:
        return "", "", tokens[2]
    raise BadMessage(f"{subject!r} is not the subject of events")


def _are_good(events: Sequence[RunEvent], expected: tuple[str, str, str], latest: float) -> bool:
    """Whether all of these are allowed and possible as they are, which is nearly always so.

    To look at all of them together takes a quarter of the time that one by one takes, and is done first therefore.
    """
    algorithm = version = caller = root_caller = instance = None
    for event in events:
        if (
            not (0.0 <= event.queued_at <= event.started_at <= event.ended_at <= latest or _is_time(event, latest))
            or not (0.0 <= event.compute_ms < math.inf and 0.0 <= event.cold_ms < math.inf)
            or not 1 <= event.attempt <= _MOST_ATTEMPTS
            or (event.error and not _is_text(event.error))
        ):
            return False
        # Mostly those of the event before it: to compare is cheaper than to look up.
        if (
            event.algorithm != algorithm
            or event.version != version
            or event.caller != caller
            or event.root_caller != root_caller
            or event.instance != instance
        ):
            if not _may_name(event, *expected):
                return False
            algorithm, version, caller = event.algorithm, event.version, event.caller
            root_caller, instance = event.root_caller, event.instance
    runs = [event.run for event in events]
    ids = [*runs, *[event.root for event in events], *[event.parent for event in events]]
    return (
        all(runs)
        and max(map(len, ids), default=0) <= _LONGEST_ID
        and not "".join(ids).encode("ascii", "replace").translate(None, _ID_BYTES)
    )


def _is_allowed(event: RunEvent, algorithm: str, version: str, caller: str) -> bool:
    run, root, parent = event.run, event.root, event.parent
    return bool(
        _may_name(event, algorithm, version, caller)
        and _ID.fullmatch(run)
        and (not root or root == run or _ID.fullmatch(root))
        and (not parent or parent == root or _ID.fullmatch(parent))
        and 1 <= event.attempt <= _MOST_ATTEMPTS
    )


def _may_name(event: RunEvent, algorithm: str, version: str, caller: str) -> bool:
    """Whether the names in it are names, and those that its subject stands for."""
    if algorithm and (event.algorithm != algorithm or event.version != version):
        return False
    if caller and event.caller != caller:
        return False
    try:
        _check_names(event.algorithm, event.version, event.caller, event.root_caller, event.instance)
    except ValueError:
        return False
    return True


# The same few in event after event. What raises is not remembered: only good names, which are short, take room.
@lru_cache(_NAMES_REMEMBERED)
def _check_names(algorithm: str, version: str, caller: str, root_caller: str, instance: str) -> None:
    """Raises ValueError unless each is formed as it should be."""
    if not (
        _NAMED.fullmatch(algorithm)
        and _VERSION.fullmatch(version)
        and _CALLER.fullmatch(caller)
        and (not root_caller or _CALLER.fullmatch(root_caller))
        and (not instance or _ID.fullmatch(instance))
    ):
        raise ValueError("not the names of a run")


def _possible(event: RunEvent, latest: float) -> RunEvent:
    """The event with numbers and a text that can be."""
    return replace(
        event,
        queued_at=_within(event.queued_at, latest),
        started_at=_within(event.started_at, latest),
        ended_at=_within(event.ended_at, latest),
        compute_ms=_within(event.compute_ms, math.inf),
        cold_ms=_within(event.cold_ms, math.inf),
        error=event.error.replace("\0", "")[:_LONGEST_ERROR],
    )


def _is_time(event: RunEvent, latest: float) -> bool:
    return (
        0 <= event.queued_at <= latest
        and 0 <= event.started_at <= latest
        and 0 <= event.ended_at <= latest
        and 0 <= event.compute_ms < math.inf
        and 0 <= event.cold_ms < math.inf
    )


def _is_text(error: str) -> bool:
    return len(error) <= _LONGEST_ERROR and "\0" not in error


def _within(value: float, latest: float) -> float:
    """A number that can be one: 0, unknown, in place of any other."""
    return min(value, latest) if 0 <= value < math.inf else 0.0
