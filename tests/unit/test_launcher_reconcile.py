"""What the launcher decides, as a pure function."""

from collections.abc import Mapping
from itertools import count
from typing import Any

from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher.budget import Capacity, Place
from algomesh_services.launcher.reconcile import (
    Action,
    InstanceView,
    Launch,
    Refuse,
    Retire,
    State,
    VersionView,
    reconcile,
)

GIB = 2**30
A, B, C = (VersionId.parse(f"demo/{name}/1.0.0") for name in "abc")
ROOMY = Capacity(max_instances=100, memory_bytes=1024 * GIB)
NOW = 1_000.0
_numbers = count(1)


def view(version: VersionId, minimum: int = 0, blocked_until: float = 0.0, **options: Any) -> VersionView:
    return VersionView(version=version, options=Options(**options), minimum=minimum, blocked_until=blocked_until)


def instance(
    version: VersionId, state: State = "ready", *, load: int = 0, idle_s: float = 1.0, place: Place | None = None
) -> InstanceView:
    return InstanceView(
        instance=f"h-{next(_numbers)}",
        version=version,
        state=state,
        load=load,
        idle_since=NOW - idle_s,
        place=place or Place(),
    )


def decide(
    views: list[VersionView],
    instances: list[InstanceView],
    waiting: Mapping[VersionId, int] | None = None,
    capacity: Capacity = ROOMY,
) -> list[Action]:
    return reconcile({each.version: each for each in views}, instances, waiting or {}, capacity, NOW)


def launches(actions: list[Action]) -> list[VersionId]:
    return [action.version for action in actions if isinstance(action, Launch)]


def retired(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.instance, action.reason) for action in actions if isinstance(action, Retire)]


# Launching


def test_nothing_waits_and_nothing_happens() -> None:
    assert decide([view(A)], []) == []


def test_the_first_parked_call_launches_one_instance() -> None:
    actions = decide([view(A)], [], {A: 1})

    assert launches(actions) == [A]
    assert actions[0] == Launch(version=A, place=actions[0].place, reason="1 parked call")  # type: ignore[union-attr]


def test_as_many_are_launched_as_the_waiting_calls_fill() -> None:
    assert len(launches(decide([view(A, concurrency=4, max_instances=10)], [], {A: 9}))) == 3


def test_no_more_than_max_instances() -> None:
    running = [instance(A, load=1)]

    assert len(launches(decide([view(A, max_instances=4)], running, {A: 64}))) == 3


def test_those_that_are_starting_are_counted_against_what_is_needed() -> None:
    starting = [instance(A, "starting"), instance(A, "starting")]

    assert len(launches(decide([view(A)], starting, {A: 2}))) == 0
    assert len(launches(decide([view(A)], starting, {A: 3}))) == 1


def test_a_hung_instance_does_not_keep_the_next_from_starting() -> None:
    hung = [instance(A, load=1)]

    assert launches(decide([view(A)], hung, {A: 1})) == [A]


def test_draining_instances_do_not_count_as_instances() -> None:
    assert launches(decide([view(A, max_instances=1)], [instance(A, "draining")], {A: 1})) == [A]


def test_a_version_that_failed_waits_out_its_back_off() -> None:
    assert decide([view(A, blocked_until=NOW + 1)], [], {A: 5}) == []
    assert launches(decide([view(A, blocked_until=NOW)], [], {A: 1})) == [A]


def test_unknown_versions_are_ignored() -> None:
    assert decide([view(A)], [], {B: 3}) == []


def test_a_version_without_any_instance_comes_before_one_that_wants_more() -> None:
    two = Capacity(max_instances=2, memory_bytes=1024 * GIB)

    actions = decide([view(A), view(B)], [instance(A, load=1)], {A: 50, B: 1}, two)

    assert launches(actions) == [B]


def test_the_note_about_a_missing_gpu_goes_with_the_place() -> None:
    (action,) = decide([view(A, gpu=0.25)], [], {A: 1})

    assert isinstance(action, Launch)
    assert action.place.note == "gpu 0.25 asked for, none here: runs on the CPU"


# Minimums


def test_a_minimum_is_started_without_a_call() -> None:
    assert launches(decide([view(A, minimum=2)], [])) == [A, A]
    assert launches(decide([view(A, minimum=2)], [instance(A, "starting")])) == [A]


def test_a_minimum_respects_the_maximum_and_the_back_off() -> None:
    assert len(launches(decide([view(A, minimum=9, max_instances=2)], []))) == 2
    assert decide([view(A, minimum=1, blocked_until=NOW + 1)], []) == []


def test_a_minimum_never_evicts_others() -> None:
    one = Capacity(max_instances=1, memory_bytes=1024 * GIB)

    assert decide([view(A, minimum=1), view(B)], [instance(B)], None, one) == []


# Retiring


def test_an_instance_that_was_idle_long_enough_is_retired() -> None:
    fresh, old = instance(A, idle_s=59), instance(A, idle_s=61)

    assert retired(decide([view(A, idle_s=60)], [fresh, old])) == [(old.instance, "idle")]


def test_idle_instances_stay_down_to_the_minimum() -> None:
    old, older, oldest = (instance(A, idle_s=idle_s) for idle_s in (100, 200, 300))

    actions = decide([view(A, minimum=1, idle_s=60)], [old, older, oldest])

    assert retired(actions) == [(oldest.instance, "idle"), (older.instance, "idle")]


def test_one_that_works_or_is_not_ready_yet_is_never_retired_as_idle() -> None:
    busy, starting = instance(A, load=1, idle_s=1e6), instance(A, "starting", idle_s=1e6)

    assert decide([view(A, idle_s=1)], [busy, starting]) == []


def test_nothing_is_retired_while_calls_of_its_version_wait() -> None:
    assert retired(decide([view(A, max_instances=1, idle_s=1)], [instance(A, idle_s=100)], {A: 1})) == []


# A full machine

ONE = Capacity(max_instances=1, memory_bytes=1024 * GIB)
GPU = Capacity(max_instances=100, memory_bytes=1024 * GIB, gpus=("0",))


def on_gpu(share: float) -> Place:
    return Place(gpus=("0",), share=share)


def test_the_longest_idle_instance_makes_room() -> None:
    two = Capacity(max_instances=2, memory_bytes=1024 * GIB)
    newer, older = instance(B, idle_s=5), instance(C, idle_s=10)

    actions = decide([view(A), view(B), view(C)], [newer, older], {A: 1}, two)

    assert actions == [Retire(instance=older.instance, reason="evicted")]


def test_what_was_evicted_frees_its_place_only_when_it_is_gone() -> None:
    leaving = instance(B, "draining")

    assert decide([view(A), view(B)], [leaving], {A: 1}, ONE) == []
    assert launches(decide([view(A), view(B)], [], {A: 1}, ONE)) == [A]


def test_a_running_or_starting_instance_is_never_evicted() -> None:
    for blocker in (instance(B, load=1), instance(B, "starting")):
        (action,) = decide([view(A), view(B)], [blocker], {A: 1}, ONE)

        assert isinstance(action, Refuse)
        assert action.version == A
        assert "busy" in action.message


def test_minimum_instances_are_not_evicted() -> None:
    (action,) = decide([view(A), view(B, minimum=1)], [instance(B, idle_s=500)], {A: 1}, ONE)

    assert isinstance(action, Refuse)


def test_a_version_that_has_an_instance_is_not_refused() -> None:
    assert decide([view(A), view(B)], [instance(A, load=1)], {A: 10}, ONE) == []


def test_only_those_are_evicted_that_make_the_difference() -> None:
    cpu = instance(B, idle_s=900)
    gpu = instance(C, idle_s=10, place=on_gpu(0.6))

    actions = decide([view(A, gpu=0.6), view(B, idle_s=1e6), view(C)], [cpu, gpu], {A: 1}, GPU)

    assert retired(actions) == [(gpu.instance, "evicted")]


def test_several_are_evicted_where_one_does_not_do() -> None:
    first, second = instance(B, idle_s=20, place=on_gpu(0.5)), instance(C, idle_s=10, place=on_gpu(0.5))

    actions = decide([view(A, gpu=1), view(B), view(C)], [first, second], {A: 1}, GPU)

    assert retired(actions) == [(first.instance, "evicted"), (second.instance, "evicted")]


def test_nothing_is_evicted_when_it_would_not_do() -> None:
    idle, busy = instance(B, place=on_gpu(0.5)), instance(C, load=1, place=on_gpu(0.5))

    actions = decide([view(A, gpu=1), view(B), view(C)], [idle, busy], {A: 1}, GPU)

    assert [type(action) for action in actions] == [Refuse]


def test_what_fits_no_machine_is_refused_with_the_reason() -> None:
    (action,) = decide([view(A, gpu=2)], [], {A: 1}, GPU)

    assert isinstance(action, Refuse)
    assert "it asks for 2 GPUs, and this machine has 1" in action.message


def test_an_instance_is_not_both_evicted_and_retired() -> None:
    old = instance(B, idle_s=1e6)

    actions = decide([view(A), view(B)], [old], {A: 1}, ONE)

    assert retired(actions) == [(old.instance, "evicted")]


def test_one_eviction_is_not_promised_to_two() -> None:
    idle = instance(C, idle_s=10)

    actions = decide([view(A), view(B), view(C)], [idle], {A: 1, B: 1}, ONE)

    assert retired(actions) == [(idle.instance, "evicted")]
    assert not any(isinstance(action, Launch) for action in actions)
