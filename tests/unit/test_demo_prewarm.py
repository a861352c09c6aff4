"""What `make demo-prewarm` makes of what it has seen."""

import pytest

from algomesh_services.demo_prewarm.figures import Busy, Called, Life, Periodic, Side, with_cold_starts
from algomesh_services.demo_prewarm.timeline import Scene, states

A = "warm/first"


def side(*, lives: list[Life] | None = None, runs: list[Busy] | None = None, calls: list[Called] | None = None) -> Side:
    return Side(name="with", ended=100.0, lives=lives or [], runs=runs or [], calls=calls or [])


def test_what_is_held_is_counted_from_launch_to_death_within_the_time_asked_for() -> None:
    seen = side(lives=[Life(A, 0.0, 1.0, 10.0), Life(A, 20.0, 21.0, 40.0), Life("warm/one", 0.0, 1.0, 100.0)])

    assert seen.held_s([A], 5.0, 30.0) == pytest.approx(0.25 * (5 + 10))


def test_idle_is_what_is_up_and_does_not_run() -> None:
    seen = side(lives=[Life(A, 0.0, 1.0, 10.0)], runs=[Busy(A, "r", 2.0, 5.0, 0.0)])

    assert seen.idle_s([A], 0.0, 100.0) == pytest.approx(0.25 * 6)


def test_a_call_knows_how_many_of_its_runs_waited_and_how_long() -> None:
    calls = [Called("pipeline", "r", 0.0, 2.0), Called("pipeline", "s", 5.0, 0.1)]
    runs = [Busy(A, "r", 1.0, 1.1, 1.0), Busy("warm/second", "r", 1.5, 1.6, 0.4), Busy(A, "s", 5.0, 5.1, 0.0)]

    first, second = with_cold_starts(calls, runs)

    assert [first.cold_starts, second.cold_starts] == [2, 0]
    assert [first.cold_s, second.cold_s] == pytest.approx([1.4, 0.0])


def test_periods_are_those_after_the_learning() -> None:
    calls = [Called("pipeline", str(at), float(at), 4.0 if at == 0 else 0.1, cold_starts=4 * (at == 0))
             for at in range(0, 50, 10)]  # fmt: skip
    seen = side(lives=[Life(A, 18.0, 19.0, 20.0), Life(A, 28.0, 29.0, 30.0)], calls=calls)

    found = Periodic.of(seen, [A], after=1, period_s=10.0)

    assert (found.calls, found.cold_starts, found.slowest_s) == (3, 0, 0.1)
    assert found.held_s == pytest.approx(0.25 * 4 / 3)
    assert found.share == pytest.approx(4 / 30)


def test_a_timeline_shows_loading_idle_and_busy() -> None:
    seen = side(lives=[Life(A, 2.0, 4.0, 8.0)], runs=[Busy(A, "r", 5.0, 5.1, 0.0)])

    assert states(seen, Scene("", (A,), 0.0, 10.0, []), A, 10) == [
        *["off"] * 2, *["loading"] * 2, "idle", "busy", *["idle"] * 2, *["off"] * 2
    ]  # fmt: skip
