"""What the ledger takes from a batch of events, and what two events about one run say together."""

import itertools
import math
from typing import Any

import pytest
from msgspec.structs import replace

from algomesh_broker import codec
from algomesh_broker.errors import BadMessage
from algomesh_broker.messages import Events, RunEvent
from algomesh_services.ledger import events

NOW = 1_800_000_000.0
SUBJECT = "event.run.text.clean.1-2-0"


def event(**fields: Any) -> RunEvent:
    known: dict[str, Any] = {
        "run": "a1", "attempt": 1, "root": "a1", "parent": "", "algorithm": "text/clean", "version": "1.2.0",
        "caller": "k~me", "root_caller": "k~me", "instance": "host-1", "state": "running", "started_at": NOW - 1,
    }  # fmt: skip
    return RunEvent(**known | fields)


def read(*runs: RunEvent, subject: str = SUBJECT) -> events.Taken:
    return events.read(subject, codec.encode(Events(runs=list(runs))), NOW)


def test_an_instance_tells_of_runs_of_its_own_version() -> None:
    assert read(event()).events == [event()]


@pytest.mark.parametrize(
    "fields",
    [
        {"algorithm": "bank/secret"},
        {"version": "1.2.1"},
        {"run": "a'; DROP"},
        {"run": ""},
        {"run": "x" * 65},
        {"attempt": 0},
        {"attempt": -5},
        {"attempt": 2**40},
        {"caller": "k~me\0"},
        {"root": "not an id"},
        {"instance": "host 1"},
    ],
)
def test_what_the_subject_or_the_form_does_not_allow_is_dropped(fields: dict[str, Any]) -> None:
    taken = read(event(**fields), event(run="good"))

    assert [run.run for run in taken.events] == ["good"]
    assert taken.dropped == 1


@pytest.mark.parametrize(
    "field", ["run", "root", "parent", "caller", "root_caller", "algorithm", "version", "instance"]
)
def test_what_was_good_before_makes_nothing_else_good(field: str) -> None:
    caller = "event.caller.k~me"
    good = event(root="r0", parent="p0")
    bad = event(**{"root": "r0", "parent": "p0", field: "not / good"})

    for _ in range(2):
        taken = read(good, bad, good, subject=caller if field in ("algorithm", "version") else SUBJECT)

        assert taken == ([good, good], 1)


@pytest.mark.parametrize("place", [0, 3, 9])
@pytest.mark.parametrize(
    "fields",
    [
        {"algorithm": "bank/secret"}, {"algorithm": ""}, {"version": "1.2.1"}, {"version": ""},
        {"run": ""}, {"run": "a b"}, {"run": "\u00e9"}, {"run": "x" * 65}, {"run": "a\n"},
        {"root": "a.b"}, {"root": "x" * 65}, {"parent": "a\0"}, {"parent": "x" * 65},
        {"attempt": 0}, {"attempt": 1_000_001},
        {"caller": ""}, {"caller": "K~me"}, {"root_caller": "k me"}, {"instance": "x" * 65},
    ],
)  # fmt: skip
def test_one_bad_event_takes_no_other_with_it(fields: dict[str, Any], place: int) -> None:
    good = [event(run=f"r{number}", parent="a1", ended_at=NOW, error="timeout") for number in range(9)]

    assert read(*good[:place], event(**fields), *good[place:]) == (good, 1)


@pytest.mark.parametrize("place", [0, 3, 9])
@pytest.mark.parametrize("field", ["queued_at", "started_at", "ended_at", "compute_ms", "cold_ms"])
@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, -math.inf])
def test_a_number_that_cannot_be_is_unknown_and_the_other_events_stay(field: str, value: float, place: int) -> None:
    good = [event(run=f"r{number}", queued_at=NOW - 2, ended_at=NOW) for number in range(9)]
    odd = event(queued_at=NOW - 2, ended_at=NOW)

    taken = read(*good[:place], replace(odd, **{field: value}), *good[place:])

    assert taken == ([*good[:place], replace(odd, **{field: 0.0}), *good[place:]], 0)


def test_times_in_any_order_and_unknown_ones_stay_as_they_are() -> None:
    told = [
        event(run=f"r{number}", queued_at=queued_at, started_at=started_at, ended_at=ended_at)
        for number, (queued_at, started_at, ended_at) in enumerate(itertools.permutations([0.0, NOW - 1, NOW + 60]))
    ]

    assert read(*told) == (told, 0)


def test_a_message_without_events_is_one() -> None:
    assert read() == ([], 0)


def test_a_caller_tells_of_its_own_calls_only() -> None:
    mine, other = event(state="expired"), event(run="b2", caller="k~other", state="expired")

    taken = read(mine, other, subject="event.caller.k~me")

    assert taken.events == [mine]
    assert taken.dropped == 1


@pytest.mark.parametrize("subject", ["event.run.text.clean", "event.caller", "event.other.k~me", "call.a.b.1-0-0.c"])
def test_other_subjects_are_no_events(subject: str) -> None:
    with pytest.raises(BadMessage):
        read(event(), subject=subject)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 100_000, codec.encode(["events", [["run"]]])])
def test_other_bytes_are_no_events(data: bytes) -> None:
    with pytest.raises(BadMessage):
        events.read(SUBJECT, data, NOW)


def test_numbers_and_text_that_cannot_be_are_made_possible() -> None:
    (taken,) = read(
        event(
            started_at=math.nan, ended_at=NOW * 2, queued_at=-1.0, compute_ms=math.inf, cold_ms=-3.0,
            error="a\0b" + "c" * 5_000,
        )
    ).events  # fmt: skip

    assert (taken.started_at, taken.queued_at, taken.compute_ms, taken.cold_ms) == (0, 0, 0, 0)
    assert taken.ended_at == NOW + 60
    assert taken.error.startswith("abc")
    assert len(taken.error) == 1_000


@pytest.mark.parametrize("end", ["succeeded", "failed", "expired", "cancelled", "refused", "lost"])
def test_an_end_never_goes_back_to_running(end: Any) -> None:
    for order in itertools.permutations([event(), event(state=end, ended_at=NOW)]):
        (run,) = events.merged(order)

        assert run.state == end


def test_what_the_instance_said_counts_more_than_what_others_feared() -> None:
    lost, done = event(state="lost", error="crash"), event(state="succeeded", compute_ms=5.0)

    for order in ([lost, done], [done, lost]):
        (run,) = events.merged(order)

        assert (run.state, run.error, run.compute_ms) == ("succeeded", "", 5.0)


def test_of_two_ends_the_first_counts_and_takes_what_it_did_not_know() -> None:
    expired = event(state="expired", error="deadline_exceeded", started_at=0.0, instance="")
    late = event(state="succeeded", compute_ms=5.0, instance="host-1")

    (run,) = events.merged([expired, late])

    assert (run.state, run.error) == ("expired", "deadline_exceeded")
    assert (run.compute_ms, run.instance, run.started_at) == (5.0, "host-1", NOW - 1)


def test_a_doubled_event_changes_nothing() -> None:
    done = event(state="succeeded", compute_ms=5.0, ended_at=NOW)

    assert events.merged([done, done, done]) == [done]


def test_attempts_are_kept_apart() -> None:
    assert len(events.merged([event(), event(attempt=2), event(run="b2")])) == 3


def test_where_each_run_is_told_of_once_all_stay_in_the_order_they_came() -> None:
    told = [event(run=f"r{number}") for number in (3, 1, 2)]

    assert events.merged(told) == told
    assert events.merged([]) == []


def test_an_event_about_somebody_elses_run_changes_nothing() -> None:
    (run,) = events.merged([event(), event(algorithm="evil/one", state="failed", error="mine")])

    assert (run.algorithm, run.state) == ("text/clean", "running")
