"""From sights and demands to what the policy is asked; the policy only writes down what it is told."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from algomesh_broker.messages import Demand, Machine, MachineInstance, Sight, Sights
from algomesh_broker.names import VersionId
from algomesh_services.prewarmer.actions import Action, Call
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.live_fleet import LiveFleet
from algomesh_services.prewarmer.sightings import Sightings
from algomesh_services.prewarmer.spared import Began

A, B, C = (VersionId.parse(f"text/{name}/1.0.0") for name in "abc")


class Asked:
    """A policy that only remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.idles: list[tuple[str, Any]] = []
        self.starts: list[tuple[str, int, float]] = []
        self.ends: list[tuple[str, Any]] = []

    def called(self, call: Call) -> list[Action]:
        self.calls.append(call)
        return []

    def idle(self, algorithm: str, at_s: float) -> list[Action]:
        self.idles.append((algorithm, at_s))
        return []

    def rests(self, algorithm: str, at_s: float) -> None:
        raise AssertionError("nothing is held")

    def started(self, request: str, index: int, at_s: float) -> None:
        self.starts.append((request, index, at_s))

    def finished(self, request: str, at_s: float) -> list[Action]:
        self.ends.append((request, at_s))
        return []


class World:
    """A time of its own, a fleet, and what is asked and noted."""

    def __init__(self) -> None:
        self.at = 1.8e9
        self.policy = Asked()
        self.clock = Clock(lambda: self.at, lambda: self.at)
        self.fleet = LiveFleet(self.clock.now, lambda _: 1.0)
        self.begun: list[tuple[str, int, bool, str]] = []
        self.running: list[bool] = []
        self.took: list[tuple[str, str, Any]] = []
        self.sightings = Sightings(self.policy, self.fleet, self.clock, self)

    def began(self, call: Began) -> None:
        self.begun.append((call.version, call.calls, call.is_cold, call.after))
        self.running.append(call.was_running)

    def computed(self, caller: str, version: str, took_s: float, ended_s: float) -> None:
        assert ended_s <= self.at + 1.0
        self.took.append((caller, version, took_s))

    def sight(self, version: VersionId, run: str, root: str = "", *, one_in: int = 1, **fields: object) -> None:
        known: dict[str, object] = {
            "run": run, "root": root or run, "parent": "", "caller": "k~me", "root_caller": "k~me", "attempt": 1,
            "started_at": self.at,
        }  # fmt: skip
        self.sightings.sighted(version, Sights(runs=[Sight(**known | fields)], one_in=one_in))  # type: ignore[arg-type]

    def later(self, seconds: float) -> None:
        self.at += seconds
        self.sightings.settle()

    def machine(self, *rows: MachineInstance) -> None:
        self.fleet.hear(Machine(launcher="host", instances=list(rows)), self.at)
        self.sightings.settle()


@pytest.fixture
def world() -> World:
    return World()


def test_a_call_counts_once_whoever_tells_of_it_and_how_often(world: World) -> None:
    demand = Demand(run="r1", root="r1", root_caller="k~me")
    world.sightings.demanded(A, "k~me", demand)
    world.sightings.demanded(A, "k~me", demand)
    for _ in range(2):
        world.sight(A, "r1", waited_ms=1_000.0)
    for _ in range(2):
        world.sight(A, "r1", ended_at=world.at + 0.001)

    assert [(call.index, call.parent, call.algorithm) for call in world.policy.calls] == [(0, -1, "text/a")]
    assert len(world.begun) == 1
    assert len(world.took) == 1


def test_a_second_attempt_is_told_as_one(world: World) -> None:
    world.sight(A, "r1")
    world.sight(A, "r1", attempt=2)

    assert [(call.index, getattr(call, "attempt", 0)) for call in world.policy.calls] == [(0, 1), (0, 2)]


def test_parents_are_known_by_their_index_also_when_they_are_told_later(world: World) -> None:
    world.sight(B, "r2", "r1", parent="r1")
    world.sight(A, "r1")
    world.sight(C, "r3", "r1", parent="r2")

    assert [(call.index, call.parent) for call in world.policy.calls] == [(0, 1), (1, -1), (2, 0)]


def test_a_waiting_call_is_expected_to_start_when_an_instance_is_ready(world: World) -> None:
    world.fleet.learn_start(str(A), "host", 4.0)
    world.sightings.demanded(A, "k~me", Demand(run="r1", root="r1"))

    assert world.policy.calls[0].ready_at_s - world.policy.calls[0].at_s == pytest.approx(4.0)


def test_a_waiting_call_that_has_started_says_when(world: World) -> None:
    world.sightings.demanded(A, "k~me", Demand(run="r1", root="r1"))
    world.later(0.25)
    world.sight(A, "r1", waited_ms=250.0)

    ((request, index, at_s),) = world.policy.starts
    assert (request, index) == ("r1", 0)
    assert at_s == pytest.approx(world.at)
    assert len(world.policy.calls) == 1


def test_a_call_that_waited_began_when_it_came(world: World) -> None:
    world.sight(A, "r1", waited_ms=2_500.0)

    call = world.policy.calls[0]
    assert call.ready_at_s == pytest.approx(world.at)
    assert call.ready_at_s - call.at_s == pytest.approx(2.5)


def test_a_request_is_over_a_moment_after_its_root(world: World) -> None:
    world.sight(A, "r1")
    world.later(1.0)
    world.sight(A, "r1", started_at=world.at - 1.0, ended_at=world.at)
    ended_s = world.at
    world.sight(B, "r2", "r1", parent="r1")  # told late
    assert world.policy.ends == []

    world.later(0.06)

    assert world.policy.ends == [("r1", pytest.approx(ended_s))]
    assert len(world.policy.calls) == 2
    world.sight(C, "r3", "r1", parent="r1")
    assert len(world.policy.calls) == 2  # too late


def test_a_pipeline_is_over_after_its_last_step(world: World) -> None:
    world.sight(A, "r1-0", "r1", stages=[str(B), str(C)])
    assert getattr(world.policy.calls[0], "route", ()) == ("text/b", "text/c")
    world.sight(A, "r1-0", "r1", stages=[str(B), str(C)], ended_at=world.at + 1e-4)
    world.later(1.0)
    assert world.policy.ends == []
    world.sight(B, "r1-1", "r1", stages=[str(C)], ended_at=world.at)
    world.later(1.0)
    assert world.policy.ends == []
    world.sight(C, "r1-2", "r1", ended_at=world.at)

    world.later(0.3)

    assert [root for root, _ in world.policy.ends] == ["r1"]
    request = [call.parent for call in world.policy.calls]
    assert request == [-1, -1, -1]


def test_a_pipeline_that_goes_on_after_a_fan_out_is_not_over(world: World) -> None:
    world.sight(A, "x-0", "r1", ended_at=world.at)  # nothing is after it in its own branch
    world.at += 0.1
    world.sight(B, "y-0", "r1")

    world.later(1.0)

    assert world.policy.ends == []


def test_who_parks_is_whom_the_subject_names(world: World) -> None:
    world.sightings.demanded(A, "k~liar", Demand(run="r1", root="r1", root_caller="k~admin", stages=[str(B)]))

    assert world.policy.calls[0].caller == "k~liar"
    request = world.sightings.request("r1")
    assert request is not None
    assert request.signed == set()  # a caller's word is not the registry's signature
    world.sight(A, "r1", stages=[str(B)])
    assert request.signed == {"text/b"}


def test_an_algorithm_is_idle_when_its_last_run_has_ended(world: World) -> None:
    world.sight(A, "r1")
    world.sight(A, "r2")
    world.sight(A, "r1", ended_at=world.at + 1e-6)
    world.later(0.1)
    assert world.policy.idles == []
    world.sight(A, "r2", ended_at=world.at)
    ended_s = world.at

    world.later(0.03)

    assert world.policy.idles == [("text/a", pytest.approx(ended_s))]


def test_an_algorithm_that_is_called_again_at_once_was_not_idle(world: World) -> None:
    world.sight(A, "r1", ended_at=world.at)
    world.at += 0.005
    world.sight(A, "r2")

    world.later(0.1)

    assert world.policy.idles == []


def instance(idle_ms: int) -> MachineInstance:
    return MachineInstance(
        instance="host-1", version=str(A), state="ready", age_ms=90_000, start_ms=500, idle_ms=idle_ms
    )


def test_of_a_busy_version_of_which_little_is_told_the_launcher_says_when_it_is_idle(world: World) -> None:
    world.machine(instance(-1))
    world.sight(A, "r00", one_in=4, ended_at=world.at)
    world.later(2.0)
    assert world.policy.idles == []

    world.machine(instance(100))

    assert world.policy.idles == [("text/a", pytest.approx(world.at - 0.1))]


def test_a_launchers_old_word_does_not_keep_an_algorithm_busy(world: World) -> None:
    world.machine(instance(-1))
    world.sight(A, "r1", ended_at=world.at)

    world.later(0.35)

    assert len(world.policy.idles) == 1


def test_an_end_that_was_lost_is_concluded_from_the_launcher(world: World) -> None:
    world.sight(A, "r1")
    world.at += 5.0
    world.machine(instance(3_000))
    world.later(1.1)

    assert [root for root, _ in world.policy.ends] == ["r1"]
    world.later(0.1)
    assert [name for name, _ in world.policy.idles] == ["text/a"]


def test_the_run_of_an_instance_that_is_gone_is_over(world: World) -> None:
    world.machine(instance(-1))
    world.sight(A, "r1")
    for _ in range(15):
        world.later(1.0)
        world.machine()

    world.later(1.1)

    assert [root for root, _ in world.policy.ends] == ["r1"]


def test_a_request_that_never_ends_is_forgotten_after_an_hour(world: World) -> None:
    world.sight(A, "r1")
    for _ in range(59):
        world.later(60.0)
    assert world.policy.ends == []

    world.later(120.0)

    assert [root for root, _ in world.policy.ends] == ["r1"]


def test_a_call_that_nobody_takes_is_forgotten(world: World) -> None:
    world.sightings.demanded(A, "k~me", Demand(run="r1", root="r1"))
    world.later(30.0)
    assert world.policy.ends == []

    world.later(600.0)

    assert [root for root, _ in world.policy.ends] == ["r1"]


def test_demands_of_requests_that_instances_do_not_tell_of_do_not_count(world: World) -> None:
    world.sight(A, "r00", one_in=4, ended_at=world.at)
    world.sightings.demanded(A, "k~me", Demand(run="rff", root="rff"))
    world.sightings.demanded(A, "k~me", Demand(run="r3f", root="r3f"))

    assert [call.request for call in world.policy.calls] == ["r00", "r3f"]


def test_sampled_calls_count_for_those_that_were_not_told(world: World) -> None:
    world.sight(A, "r00", one_in=8, started_at=world.at - 0.5, ended_at=world.at)

    assert world.begun == [(str(A), 8, False, "")]
    assert world.took == [("k~me", str(A), pytest.approx(4.0))]


def test_a_call_that_waited_for_a_start_was_cold(world: World) -> None:
    world.machine(instance(-1))
    world.sight(A, "r1", waited_ms=100.0)  # for a slot
    world.at += 10.0
    fresh = MachineInstance(instance="host-2", version=str(A), state="ready", age_ms=600, start_ms=500, idle_ms=0)
    world.machine(instance(-1), fresh)
    world.sight(A, "r2", waited_ms=700.0)

    assert [cold for _, _, cold, _ in world.begun] == [False, True]


@pytest.mark.parametrize("wrong", [-1e12, 1e12, float("nan"), float("inf"), -1.0])
def test_wrong_times_teach_no_nonsense(world: World, wrong: float) -> None:
    world.sight(A, "r1", started_at=wrong, waited_ms=wrong, ended_at=world.at)
    world.sight(B, "r2", started_at=world.at, waited_ms=wrong, ended_at=wrong)

    for call in world.policy.calls:
        assert world.at - 7 * 86_400 - 10 <= call.at_s <= call.ready_at_s <= world.at


def test_lost_doubled_and_shuffled_sights_leave_nothing_behind(world: World) -> None:
    chance = random.Random(1)
    told: list[Callable[[], None]] = []
    for number in range(300):
        root, child, began = f"{number:030x}00", f"c{number}", world.at
        told += [
            lambda root=root, began=began: world.sight(A, root, started_at=began),  # type: ignore[misc]
            lambda root=root, began=began: world.sight(A, root, started_at=began, ended_at=began + 0.01),  # type: ignore[misc]
            lambda root=root, child=child: world.sight(B, child, root, parent=root),  # type: ignore[misc]
            lambda root=root, child=child: world.sight(B, child, root, parent=root, ended_at=world.at),  # type: ignore[misc]
        ]
    told = [each for each in told * 2 if chance.random() > 0.1]
    chance.shuffle(told)
    for tell in told:
        tell()
        world.later(0.001)
    both = [
        MachineInstance(instance=f"host-{v.name}", version=str(v), state="ready", age_ms=90_000, start_ms=5, idle_ms=0)
        for v in (A, B)
    ]
    world.machine(*both)
    for _ in range(700):
        world.later(1.0)
        world.machine(*both)

    assert not world.sightings._requests
    assert not world.sightings._running
    keys = [(call.request, call.index) for call in world.policy.calls]
    assert len(keys) == len(set(keys))
    assert len(world.policy.ends) == len({root for root, _ in world.policy.ends}) == 300


def test_steps_of_a_pipeline_are_told_as_such(world: World) -> None:
    world.sight(A, "0af-0", "0af", stages=[str(B)])
    world.sight(B, "0af-1", "0af")
    world.sight(C, "c1", "0af", parent="0af-1")
    world.sight(A, "f7e-2", "0af", parent="c1")

    assert [getattr(call, "step", None) for call in world.policy.calls] == [("", 0), ("", 1), None, ("c1", 2)]


def test_it_is_told_whether_others_of_the_algorithm_run_already(world: World) -> None:
    world.sight(A, "r1")
    world.sight(A, "r2")
    for run in ("r1", "r2"):
        world.sight(A, run, ended_at=world.at)
    world.sight(A, "r3")

    assert world.running == [False, True, False]
