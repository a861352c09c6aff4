"""What the ledger remembers of what it wrote."""

from typing import Any

from algomesh_broker.messages import RunEvent
from algomesh_services.ledger.recent import Recent
from algomesh_services.ledger.store import _NAMES


def event(run: str, attempt: int = 1, state: Any = "succeeded") -> RunEvent:
    return RunEvent(
        run=run, attempt=attempt, root=run, parent="", algorithm="a/b", version="1.0.0", caller="k~me",
        root_caller="k~me", state=state,
    )  # fmt: skip


def test_what_was_written_is_known_and_the_rest_is_new_in_the_order_it_came() -> None:
    recent = Recent()
    recent.add([event("a"), event("b", state="running")])

    batch = [event("x"), event("a"), event("a", 2), event("b"), event("y")]
    new, known = recent.split(batch)

    assert [(one.run, one.attempt) for one in new] == [("x", 1), ("a", 2), ("y", 1)]
    assert [one.run for one in known] == ["a", "b"]


def test_where_nothing_is_known_all_is_new() -> None:
    assert Recent().split([event("a"), event("b")]) == ([event("a"), event("b")], [])


def test_it_remembers_a_bounded_number_and_the_latest_of_them() -> None:
    recent = Recent(most=100)
    told = [event(f"r{number}") for number in range(1_000)]
    for one in told:
        recent.add([one])

    known = recent.split(told).known

    assert known == told[-len(known) :]
    assert 50 <= len(known) <= 100


def test_runs_that_take_long_are_remembered_while_many_others_end() -> None:
    recent = Recent(most=10)
    recent.add([event("long", state="running")])
    recent.add([event(f"r{number}") for number in range(1_000)])

    assert recent.split([event("long")]).known == [event("long")]


def test_only_the_first_end_of_an_attempt_is_told_of_again() -> None:
    recent = Recent()
    running, lost, ended = (event("a", state=state) for state in ("running", "lost", "succeeded"))

    assert recent.add([running, event("b")]) == [event("b")]
    assert recent.add([event("b"), event("b", 2)]) == [event("b", 2)]
    assert recent.add([lost, event("c", state="running")]) == [lost]
    assert recent.add([lost]) == []
    assert recent.add([ended, event("c")]) == [event("c")]


def test_the_tables_columns_are_an_events_fields_in_their_order() -> None:
    assert RunEvent.__struct_fields__ == _NAMES
