"""What the launcher decides about versions that the pre-warmer holds, as a pure function."""

from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.holds import GRACE_S, Held
from algomesh_services.launcher.reconcile import Action, Launch, Retire, VersionView
from tests.unit.test_launcher_reconcile import (
    GIB,
    GPU,
    NOW,
    ONE,
    A,
    B,
    C,
    decide,
    instance,
    launches,
    on_gpu,
    retired,
    view,
)

TWO = Capacity(max_instances=2, memory_bytes=1024 * GIB)
SOON = "idle, and not expected to be called soon"


def held(base: VersionView, gain: float = 1.0, key: str = "gap:0") -> VersionView:
    hold = Held(key=key, start_at=NOW, until_at=NOW + 10, reason="called about every 12 s", gain=gain)
    return managed(base, hold=hold)


def managed(base: VersionView, unheld_s: float = 100.0, hold: Held | None = None) -> VersionView:
    return VersionView(
        version=base.version,
        options=base.options,
        minimum=base.minimum,
        blocked_until=base.blocked_until,
        hold=hold,
        is_managed=True,
        unheld_since=NOW - unheld_s,
    )


def launched_for(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.reason, action.key) for action in actions if isinstance(action, Launch)]


# Launching


def test_a_hold_launches_one_instance_for_its_reason() -> None:
    actions = decide([held(view(A, concurrency=1, max_instances=4))], [])

    assert launched_for(actions) == [("called about every 12 s", "gap:0")]


def test_a_hold_wants_no_second_instance() -> None:
    assert decide([held(view(A))], [instance(A, "starting")]) == []
    assert decide([held(view(A))], [instance(A, load=9)]) == []


def test_calls_that_wait_count_for_themselves() -> None:
    actions = decide([held(view(A, max_instances=4))], [], {A: 2})

    assert launched_for(actions) == [("2 parked calls", "")] * 2


def test_a_hold_is_served_while_the_last_instance_drains() -> None:
    assert launches(decide([held(view(A))], [instance(A, "draining")])) == [A]


def test_a_held_version_that_failed_waits_out_its_back_off() -> None:
    assert decide([held(view(A, blocked_until=NOW + 1))], []) == []


def test_without_room_for_all_the_highest_gain_is_served() -> None:
    views = [held(view(A), 1), held(view(B), 3), held(view(C), 2)]

    assert launches(decide(views, [], None, TWO)) == [B, C]


def test_a_hold_that_fits_is_served_though_a_better_one_does_not() -> None:
    views = [held(view(A, gpu=1), 9), held(view(B), 1)]

    assert launches(decide(views, [instance(C, load=1, place=on_gpu(1))], None, GPU)) == [B]


def test_calls_and_minimums_come_before_holds() -> None:
    assert launches(decide([held(view(A), 9), view(B)], [], {B: 1}, ONE)) == [B]
    assert launches(decide([held(view(A), 9), view(B, minimum=1)], [], None, ONE)) == [B]


def test_no_hold_takes_the_place_that_a_call_waits_for() -> None:
    leaving = instance(C, "draining", place=on_gpu(0.5))  # the other half is free

    assert decide([view(A, gpu=1), held(view(B, gpu=0.5)), view(C)], [leaving], {A: 1}, GPU) == []
    assert launches(decide([view(A, gpu=1), held(view(B, gpu=0.5)), view(C)], [leaving], None, GPU)) == [B]


def test_a_hold_is_never_refused() -> None:
    assert decide([held(view(A)), view(B)], [instance(B, load=1)], None, ONE) == []
    assert decide([held(view(A, gpu=7))], [], None, GPU) == []


# Making room


def test_what_nothing_holds_makes_room_for_a_hold() -> None:
    idle = instance(B, idle_s=5)

    assert decide([held(view(A)), view(B)], [idle], None, ONE) == [Retire(instance=idle.instance, reason="evicted")]


def test_what_works_starts_or_was_busy_a_moment_ago_makes_no_room_for_a_hold() -> None:
    for blocker in (instance(B, load=1), instance(B, "starting"), instance(B, idle_s=0.05)):
        assert decide([held(view(A), 1e9), view(B)], [blocker], None, ONE) == []


def test_what_calls_wait_for_makes_no_room_for_a_hold() -> None:
    assert decide([held(view(A)), view(B, max_instances=1)], [instance(B, idle_s=5)], {B: 1}, ONE) == []


def test_what_is_held_makes_room_for_a_much_higher_gain_only() -> None:
    idle = instance(B, idle_s=5)

    assert decide([held(view(A), 1.0), held(view(B), 2.0)], [idle], None, ONE) == []
    assert decide([held(view(A), 2.1), held(view(B), 2.0)], [idle], None, ONE) == []
    assert retired(decide([held(view(A), 3.0), held(view(B), 2.0)], [idle], None, ONE)) == [(idle.instance, "evicted")]


def test_minimums_make_no_room_for_a_hold() -> None:
    assert decide([held(view(A)), view(B, minimum=1)], [instance(B, idle_s=50)], None, ONE) == []


def test_a_call_takes_the_place_of_what_nothing_holds_before_what_is_held_for_least() -> None:
    unheld, cheap, dear = instance(B, idle_s=1), instance(C, idle_s=9), instance(A, idle_s=99)
    views = [held(view(A), 5), view(B), held(view(C), 1)]
    wanted = view(type(A)("demo", "d", A.version))
    three = Capacity(max_instances=3, memory_bytes=1024 * GIB)

    first = decide([*views, wanted], [unheld, cheap, dear], {wanted.version: 1}, three)
    second = decide([*views, wanted], [cheap, dear], {wanted.version: 1}, TWO)

    assert retired(first) == [(unheld.instance, "evicted")]
    assert retired(second) == [(cheap.instance, "evicted")]


def test_the_room_made_for_one_hold_is_not_given_to_another() -> None:
    leaving = instance(C, "draining")
    views = [held(view(A), 2), held(view(B), 1), view(C)]

    assert decide(views, [leaving, instance(C, load=1)], None, TWO) == []
    assert launches(decide(views, [instance(C, load=1)], None, TWO)) == [A]


# Retiring


def test_an_instance_with_a_gpu_goes_a_grace_after_nothing_holds_it() -> None:
    idle = instance(A, idle_s=GRACE_S)

    assert retired(decide([managed(view(A, gpu=0.1, idle_s=60))], [idle])) == [(idle.instance, SOON)]
    assert decide([managed(view(A, gpu=0.1, idle_s=60))], [instance(A, idle_s=GRACE_S - 0.01)]) == []


def test_the_grace_begins_when_the_last_hold_has_ended() -> None:
    assert decide([managed(view(A, gpu=1), unheld_s=GRACE_S / 2)], [instance(A, idle_s=50)]) == []


def test_an_instance_without_a_gpu_keeps_its_fixed_idle_time() -> None:
    young, old = instance(A, idle_s=59), instance(A, idle_s=60)

    assert retired(decide([managed(view(A, idle_s=60))], [young, old])) == [(old.instance, "idle")]
    assert decide([managed(view(A, idle_s=60), unheld_s=GRACE_S / 2)], [old]) == []


def test_where_the_prewarmer_is_silent_or_leaves_it_alone_idle_times_are_fixed() -> None:
    assert decide([view(A, gpu=1, idle_s=60)], [instance(A, idle_s=59)]) == []


def test_what_is_held_is_not_retired_as_idle() -> None:
    assert decide([held(view(A, gpu=1))], [instance(A, idle_s=1e6)]) == []
    assert decide([held(view(A, idle_s=1))], [instance(A, idle_s=1e6)]) == []


def test_a_hold_keeps_one_instance_that_is_ready_and_no_more() -> None:
    newer, older = instance(A, idle_s=5), instance(A, idle_s=50)

    assert retired(decide([held(view(A, gpu=1))], [newer, older])) == [(older.instance, SOON)]
    assert decide([held(view(A, gpu=1))], [newer, instance(A, "starting")]) == []


def test_what_still_loads_is_not_retired_though_nothing_holds_it_any_more() -> None:
    assert decide([managed(view(A, gpu=1))], [instance(A, "starting", idle_s=1e6)]) == []


def test_a_minimum_stays_up_without_a_hold() -> None:
    assert decide([managed(view(A, gpu=1, minimum=1))], [instance(A, idle_s=1e6)]) == []
