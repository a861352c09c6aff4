"""Requests under way: delays of a warm run, waits beside and before, and bounds."""

import pytest

from algomesh_services.prewarmer.outlook import Outlook
from algomesh_services.prewarmer.requests import FORGOTTEN_AFTER_S, MOST_CALLS, Request, Requests


def warm_delays(request: Request, name: str) -> dict[str, float]:
    return {
        later.algorithm: later.delay_s
        for record, all_later in request.lessons()
        for later in all_later
        if record.algorithm == name
    }


def test_waits_before_a_call_are_not_part_of_its_delay() -> None:
    request = Request("a", None, 0.0)
    request.add(0, -1, "a", 0.0, 5.0)  # waits 5 s
    request.add(1, 0, "b", 6.0, 16.0)  # 1 s into the run of a; waits 10 s
    request.add(2, 0, "c", 18.0, 18.0)  # b took 2 s

    assert warm_delays(request, "a") == pytest.approx({"b": 1.0, "c": 3.0})
    assert warm_delays(request, "b") == pytest.approx({"c": 2.0})


def test_a_wait_in_a_parallel_branch_does_not_count() -> None:
    request = Request("a", None, 0.0)
    request.add(0, -1, "a", 0.0, 0.0)
    request.add(1, 0, "slow", 1.0, 31.0)
    quick = request.add(2, 0, "quick", 1.5, 1.5)
    below = request.add(3, 2, "below", 4.0, 4.0)

    assert quick.is_beside is True
    assert (quick.warm_s, below.warm_s) == (1.5, 4.0)
    join = request.add(4, 0, "join", 33.0, 33.0)
    assert join.warm_s == pytest.approx(3.0)
    assert join.is_beside is False


def test_a_wait_deep_below_delays_what_its_ancestors_do_next() -> None:
    request = Request("a", None, 0.0)
    request.add(0, -1, "a", 0.0, 0.0)
    request.add(1, 0, "b", 1.0, 1.0)
    request.add(2, 1, "c", 2.0, 12.0)

    assert request.add(3, 0, "d", 15.0, 15.0).warm_s == pytest.approx(5.0)


def test_calls_out_of_order_and_without_a_parent_have_no_negative_delays() -> None:
    request = Request("a", None, 100.0)
    for index, parent, at_s in ((3, 2, 105.0), (0, -1, 100.0), (9, 77, 90.0), (2, 0, 104.0)):
        request.add(index, parent, f"x{index}", at_s, at_s + 1.0)

    assert all(later.delay_s >= 0.0 for _, all_later in request.lessons() for later in all_later)


def test_the_first_later_call_of_each_algorithm_is_learned_also_of_itself() -> None:
    request = Request("a", None, 0.0)
    for index, name in enumerate(("a", "b", "a", "b")):
        request.add(index, index - 1, name, float(index), float(index))

    assert {r.index: {x.algorithm: x.delay_s for x in later} for r, later in request.lessons()}[0] == {
        "b": 1.0,
        "a": 2.0,
    }


def test_a_long_request_remembers_its_last_calls() -> None:
    request = Request("a", None, 0.0)
    for index in range(1000):
        request.add(index, index - 1, f"x{index % 7}", float(index), float(index))
        request.saw(index, 1)
        oldest = request.full()
        if oldest is not None:
            assert len(request.after(oldest)) == 7
            request.drop(oldest)

    assert len(request.records) == MOST_CALLS
    assert len(request.attempts) <= 16 * MOST_CALLS
    assert len(request.by_algorithm) == 7


def test_silent_requests_are_forgotten_by_the_time_of_events() -> None:
    requests = Requests()
    requests.open("old", "a", None, 0.0)
    requests.open("new", "a", None, FORGOTTEN_AFTER_S)

    assert [name for name, _ in requests.forgotten(FORGOTTEN_AFTER_S + 1.0)] == ["old"]
    assert requests.forgotten(-1e9) == []


def test_too_many_requests_push_out_the_longest_silent() -> None:
    requests = Requests(most=3)
    for k in range(4):
        requests.open(str(k), "a", None, float(k))
    requests.get("0")

    assert [name for name, _ in requests.forgotten(4.0)] == ["1"]


def test_ended_requests_are_known_as_such_for_a_while() -> None:
    requests = Requests(most=2)
    for name in ("1", "2", "3"):
        requests.open(name, "a", None, 0.0)
        requests.end(name)

    assert [requests.has_ended(name) for name in ("1", "2", "3")] == [False, True, True]


def test_a_late_load_puts_off_what_follows_but_not_what_runs_beside() -> None:
    request = Request("root", None, 0.0)
    record = request.add(0, -1, "root", 0.0, 0.0)
    following = Outlook(request, record, lambda _: 0.0)
    beside = Outlook(request, record, lambda _: 1.0)

    for outlook in (following, beside):
        outlook.tell("slow", "root", 8.0)

    assert following.before_s("root") == 8.0
    assert beside.before_s("root") == 0.0
    assert beside.before_s("slow") == 8.0


def test_a_start_that_comes_earlier_than_was_expected_shortens_the_wait_of_all_above_it() -> None:
    request = Request("a", None, 0.0)
    request.add(0, -1, "a", 0.0, 1.0)  # expected to wait a second
    request.started(0, 0.1)  # it waited a tenth
    request.add(1, 0, "b", 0.4, 1.4)
    request.started(1, 0.5)

    assert request.add(2, 0, "c", 0.9, 0.9).warm_s == pytest.approx(0.7)
    assert warm_delays(request, "a") == pytest.approx({"b": 0.3, "c": 0.7})


def test_a_start_that_comes_later_than_was_expected_lengthens_it() -> None:
    request = Request("a", None, 0.0)
    request.add(0, -1, "a", 0.0, 0.0)
    request.started(0, 2.0)

    assert request.add(1, 0, "b", 3.0, 3.0).warm_s == pytest.approx(1.0)


def test_a_start_of_a_call_that_nobody_knows_changes_nothing() -> None:
    request = Request("a", None, 0.0)
    request.started(7, 2.0)
    assert not request.records
