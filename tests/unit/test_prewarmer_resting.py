"""When the policy is asked about algorithms of which nothing runs, and when it only notes that they rest."""

from algomesh_broker.messages import Machine, MachineInstance
from algomesh_services.prewarmer.actions import Action, Call, Hold
from algomesh_services.prewarmer.live_fleet import LiveFleet
from algomesh_services.prewarmer.resting import Resting

ALGORITHM, VERSION = "text/a", "text/a/1.0.0"


class Keeps:
    """A policy that keeps what is idle for `keeps_s`, and remembers what it was told."""

    def __init__(self, keeps_s: float) -> None:
        self.keeps_s = keeps_s
        self.idles: list[float] = []
        self.noted: list[float] = []

    def idle(self, algorithm: str, at_s: float) -> list[Action]:
        self.idles.append(at_s)
        return [Hold(algorithm=algorithm, key="gap:0", start_s=at_s, until_s=at_s + self.keeps_s, why="gap")]

    def rests(self, algorithm: str, at_s: float) -> None:
        self.noted.append(at_s)

    def called(self, call: Call) -> list[Action]:
        return []

    def started(self, request: str, index: int, at_s: float) -> None: ...

    def finished(self, request: str, at_s: float) -> list[Action]:
        return []


class World:
    """Resting algorithms, looked at every 10 ms as long as there is something to look at."""

    def __init__(self, keeps_s: float = 60.0, *, is_sampled: bool = False) -> None:
        self.at, self.is_sampled = 1_000.0, is_sampled
        self.policy = Keeps(keeps_s)
        self.fleet = LiveFleet(lambda: self.at, lambda _: 1.0)
        self.fleet.called(ALGORITHM, VERSION)
        self.resting = Resting(self.policy, self.fleet, lambda _: self.is_sampled)

    def rests(self, seconds: float) -> None:
        self.resting.rests(ALGORITHM, self.at, self.at)
        end_s = self.at + seconds
        while self.at < end_s:
            self.at = min(end_s, self.at + 0.01)
            if self.resting.next_s <= self.at:
                self.resting.settle(self.at)

    def works(self) -> None:
        self.resting.works(ALGORITHM)


def test_what_was_never_decided_is_decided_at_once() -> None:
    world = World()
    world.rests(0.03)
    assert (world.policy.idles, world.policy.noted) == ([1_000.0], [])


def test_while_the_last_decision_keeps_it_short_rests_are_only_noted() -> None:
    world = World()
    for _ in range(10):
        world.rests(0.1)
        world.works()
    assert len(world.policy.idles) == 1
    assert len(world.policy.noted) == 9


def test_a_rest_that_lasts_is_decided_about_from_when_it_began() -> None:
    world = World()
    world.rests(0.1)
    world.works()
    began_s = world.at
    world.rests(1.0)
    assert world.policy.idles == [1_000.0, began_s]
    assert world.resting.next_s == float("inf")


def test_before_the_last_decision_ends_it_is_decided_anew() -> None:
    world = World(keeps_s=2.0)
    for _ in range(20):
        world.rests(0.1)
        world.works()
    assert len(world.policy.idles) == 2  # the second time with half a second left


def test_without_a_hold_every_rest_is_decided_about() -> None:
    world = World(keeps_s=0.0)
    for _ in range(5):
        world.rests(0.1)
        world.works()
    assert (len(world.policy.idles), world.policy.noted) == (5, [])


def test_what_lies_between_two_runs_of_a_sample_is_not_even_noted() -> None:
    world = World(is_sampled=True)
    for _ in range(10):
        world.rests(0.1)
        world.works()
    assert (len(world.policy.idles), world.policy.noted) == (1, [])


def test_a_hold_on_another_version_does_not_count() -> None:
    world = World()
    world.rests(0.1)
    world.works()
    world.fleet.called(ALGORITHM, "text/a/2.0.0")
    world.rests(0.1)
    assert len(world.policy.idles) == 2


def test_what_its_launcher_says_to_work_is_not_decided_about() -> None:
    world = World()
    row = MachineInstance(instance="i", version=VERSION, state="ready", age_ms=9_000, start_ms=100, idle_ms=-1)
    world.fleet.hear(Machine(launcher="host", instances=[row]), world.at)
    world.rests(0.2)
    assert world.policy.idles == []
    world.rests(0.4)
    assert len(world.policy.idles) == 1
