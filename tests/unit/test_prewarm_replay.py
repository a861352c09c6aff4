"""What a replay of recorded runs says: small histories whose outcome can be worked out by hand."""

from typing import Any

import pytest

from algomesh_broker.platform import RunRow
from algomesh_services.prewarmer.replay import AlwaysWarm, KeepAlive, Predicted, replay
from algomesh_services.prewarmer.replay_fleet import Traits
from algomesh_services.prewarmer.replay_history import Recording, busy_s, cold_starts_s, record

COLD_S = 2.0
BEGIN_S = 1_000.0  # the clock at the beginning of every history here


def row(run: str, algorithm: str, called_s: float, ended_s: float, **more: Any) -> RunRow:
    """A run that was called and ended then, after BEGIN_S; with `cold_s` it waited that long in between."""
    called_s, ended_s = BEGIN_S + called_s, BEGIN_S + ended_s
    begun_s = called_s + more.pop("cold_s", 0.0)
    known: dict[str, Any] = {
        "run": run, "attempt": 1, "root": run.partition(".")[0], "parent": run.rpartition(".")[0],
        "algorithm": algorithm,
        "version": "1.0.0", "caller": "k~me", "root_caller": "k~me", "instance": "host-1", "state": "succeeded",
        "queued_at": begun_s, "started_at": begun_s, "ended_at": ended_s, "compute_ms": 1000 * (ended_s - begun_s),
        "cold_ms": 1000 * (begun_s - called_s), "error": "",
    }  # fmt: skip
    return RunRow(**known | more)


def chain(at_s: float, number: int = 0) -> list[RunRow]:
    """me/a works for three seconds, and calls me/b after one, which works for one."""
    return [row(f"r{number}", "me/a", at_s, at_s + 3), row(f"r{number}.b", "me/b", at_s + 1, at_s + 2)]


def traits(recording: Recording, cold_s: float = COLD_S, **more: Any) -> dict[str, Traits]:
    return {name: Traits(cold_s, **more) for name in recording.cold_s}


TWICE = record([*chain(0.0), *chain(100.0, 1)])


def test_a_keep_alive_that_is_too_short_pays_every_cold_start_one_after_the_other() -> None:
    outcome = replay(TWICE, KeepAlive(10), traits(TWICE), until_s=BEGIN_S + 200)

    # Each time a loads 0-2; b is called at 3, loads 3-5, runs 5-6; a ends at 7 instead of 3. Up: a 0-17, b 3-16.
    assert outcome.added_s == pytest.approx(8)
    assert (outcome.requests, outcome.calls, outcome.cold_calls, outcome.starts) == (2, 4, 4, 4)
    assert outcome.held_gpu_s == pytest.approx(2 * (17 + 13))
    assert outcome.busy_gpu_s == pytest.approx(2 * (3 + 1))
    assert outcome.idle_gpu_s == pytest.approx(52)
    assert outcome.cost_gpu_s(5) == pytest.approx(52 + 5 * 8)
    assert outcome.cold_share == 1.0


def test_a_keep_alive_that_is_long_enough_pays_once_and_is_counted_to_the_end_of_the_window() -> None:
    outcome = replay(TWICE, KeepAlive(1_000), traits(TWICE, gpu=0.5), until_s=BEGIN_S + 200)

    assert outcome.added_s == pytest.approx(4)
    assert (outcome.cold_calls, outcome.starts, outcome.unused_starts) == (2, 2, 0)
    assert outcome.held_gpu_s == pytest.approx(0.5 * (200 + 197))


def test_always_warm_adds_nothing_and_holds_everything() -> None:
    outcome = replay(TWICE, AlwaysWarm(), traits(TWICE), until_s=BEGIN_S + 200)

    assert (outcome.added_s, outcome.cold_calls, outcome.starts) == (0.0, 0, 2)
    assert outcome.idle_gpu_s == pytest.approx(2 * 200 - 8)


def test_latency_that_is_worth_nothing_holds_nothing() -> None:
    outcome = replay(TWICE, Predicted(0), traits(TWICE), until_s=BEGIN_S + 200)

    assert outcome.added_s == pytest.approx(8)
    assert outcome.held_gpu_s == pytest.approx(2 * (7 + 3))


def test_an_algorithm_keeps_the_latency_value_of_its_own() -> None:
    known = {name: Traits(COLD_S, latency_value=0.0) for name in TWICE.cold_s}

    outcome = replay(TWICE, Predicted(30), known, until_s=BEGIN_S + 200)

    assert outcome.held_gpu_s == pytest.approx(2 * (7 + 3))


def test_what_lingers_when_nobody_holds_it_is_counted_for_the_pre_warmer_only() -> None:
    lingering = traits(TWICE, linger_s=5.0)

    assert replay(TWICE, Predicted(0), lingering, until_s=BEGIN_S + 200).held_gpu_s == pytest.approx(
        2 * (7 + 3 + 2 * 5)
    )
    assert replay(TWICE, KeepAlive(0.001), lingering, until_s=BEGIN_S + 200).held_gpu_s == pytest.approx(
        2 * (7 + 3), abs=0.1
    )


def test_the_pre_warmer_learns_the_chain_and_hides_what_follows_its_first_call() -> None:
    history = record([run for number in range(40) for run in chain(500.0 * number, number)])

    outcome = replay(history, Predicted(5), traits(history), from_s=BEGIN_S + 500.0 * 20)
    unaided = replay(history, KeepAlive(1), traits(history), from_s=BEGIN_S + 500.0 * 20)

    assert unaided.added_s == pytest.approx(20 * 4)
    assert outcome.requests == 20
    assert outcome.added_s < 0.8 * unaided.added_s
    assert outcome.cost_gpu_s(5) < unaided.cost_gpu_s(5)


def test_cold_starts_of_that_day_are_taken_out_of_the_delays() -> None:
    cold = record(
        [
            row("r0", "me/a", 0.0, 7.0, cold_s=2.0),
            row("r0.b", "me/b", 3.0, 6.0, cold_s=2.0),
        ]
    )

    (request,) = cold.requests

    assert request.warm_s == pytest.approx(3)
    assert [(call.warm_start_s, call.warm_end_s) for call in request.calls] == [(0, 3), (1, 2)]
    assert cold.waited == 2
    assert cold.cold_s == {"me/a": 2.0, "me/b": 2.0}


def test_calls_side_by_side_wait_side_by_side_and_calls_in_a_row_in_a_row() -> None:
    beside = record([row("r", "me/a", 0, 3), row("r.1", "me/b", 1, 2), row("r.2", "me/c", 1.0001, 2)])
    in_a_row = record([row("r", "me/a", 0, 4), row("r.1", "me/b", 1, 2), row("r.2", "me/c", 2.0, 3)])

    assert replay(beside, KeepAlive(1), traits(beside)).added_s == pytest.approx(4)
    assert replay(in_a_row, KeepAlive(1), traits(in_a_row)).added_s == pytest.approx(6)


def test_a_call_that_nobody_waits_for_delays_nobody() -> None:
    left_behind = record([row("r", "me/a", 0, 2), row("r.1", "me/b", 1, 9)])

    assert left_behind.requests[0].warm_s == pytest.approx(2)
    assert replay(left_behind, KeepAlive(1), traits(left_behind)).added_s == pytest.approx(2)


def test_a_record_that_is_a_little_late_does_not_turn_a_row_into_side_by_side() -> None:
    late = record([row("r", "me/a", 0, 4), row("r.1", "me/b", 1, 2.002), row("r.2", "me/c", 2.0, 3)])

    assert [step.call for step in late.requests[0].calls[1].after_end] == [2]


def test_the_stages_of_a_pipeline_know_what_is_to_come() -> None:
    stages = record(
        [
            row(f"r-{at}", f"me/{name}", at, at + 1.0, root="r", parent="")
            for at, name in enumerate(("a", "b", "c"))
        ]
    )  # fmt: skip

    (request,) = stages.requests

    assert [call.route for call in request.calls] == [("me/b", "me/c"), ("me/c",), ()]
    assert [call.parent for call in request.calls] == [-1, -1, -1]
    # Known stages start at once: b is called two seconds later than c's cold start would need, had a been warm.
    assert replay(stages, Predicted(5), traits(stages)).added_s == pytest.approx(2, abs=0.1)
    assert replay(stages, KeepAlive(1), traits(stages)).added_s == pytest.approx(6)


def test_only_the_last_attempt_of_a_run_counts_and_runs_that_never_began_do_not() -> None:
    history = record(
        [
            row("r", "me/a", 0, 1, state="lost"),
            row("r", "me/a", 5, 6, attempt=2),
            row("never", "me/a", 0, 0, started_at=0.0, state="expired"),
        ]
    )

    assert history.calls == 1
    assert history.requests[0].at_s == BEGIN_S + 5


def test_runs_that_are_said_to_have_made_each_other_do_not_hang_it() -> None:
    circle = record(
        [row("x", "me/a", 0, 1, root="r", parent="y"), row("y", "me/b", 0.5, 2, root="r", parent="x"), *chain(50.0)]
    )

    assert sorted(call.parent for request in circle.requests for call in request.calls) == [-1, -1, 0, 0]
    assert replay(circle, KeepAlive(1), traits(circle)).requests == 2


def test_a_run_whose_end_nobody_told_ends_with_what_it_computed() -> None:
    history = record([row("r", "me/a", 0, 0, state="lost", compute_ms=1_500.0, ended_at=0.0)])

    assert history.requests[0].warm_s == pytest.approx(1.5)


def test_the_cold_start_of_an_algorithm_is_the_median_of_its_instances_first_waits() -> None:
    rows = [
        *(row(f"{number}", "me/a", 0, 9, cold_s=float(number), instance=f"i{number}") for number in (1, 2, 6)),
        row("later", "me/a", 0, 9, cold_s=0.1, instance="i1"),
        row("warm", "me/b", 0, 9),
    ]  # fmt: skip

    assert cold_starts_s(rows) == {"me/a": 2.0, "me/b": 1.0}


def test_busy_time_counts_an_overlap_once_and_only_in_the_window() -> None:
    history = record([row("p", "me/a", 0, 4), row("q", "me/a", 2, 6), row("s", "me/a", 8, 20)])

    assert busy_s(history, BEGIN_S + 1, BEGIN_S + 10) == {"me/a": pytest.approx(5 + 2)}


def test_nothing_recorded_is_nothing_replayed() -> None:
    empty = record([])

    assert empty.requests == []
    assert replay(empty, KeepAlive(1), {}).requests == 0
    assert replay(empty, AlwaysWarm(), {}).held_gpu_s == 0


def test_progress_is_told() -> None:
    shares: list[float] = []

    replay(TWICE, KeepAlive(1), traits(TWICE), on_progress=shares.append)

    assert shares == [0.0]
