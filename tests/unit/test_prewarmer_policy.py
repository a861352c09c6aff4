"""The policy as it is asked: what it holds and releases, and bad input."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from algomesh_services.prewarmer.actions import Action, Hold, LatencyValue, Release
from algomesh_services.prewarmer.counts import Later, Node
from algomesh_services.prewarmer.planning import MOST_COMING, WEIGHED_EACH_CALL
from algomesh_services.prewarmer.policy import BreakEvenPolicy
from algomesh_services.prewarmer.windows import Ahead, Window


@dataclass(frozen=True)
class Call:
    request: str
    index: int
    parent: int
    algorithm: str
    caller: str | None
    at_s: float
    ready_at_s: float


@dataclass(frozen=True)
class LiveCall(Call):
    route: tuple[str, ...] = ()
    version: str | None = None
    attempt: int = 1
    step: tuple[str, int] | None = None


@dataclass
class Fleet:
    cold: dict[str, float] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0

    def cold_start_s(self, algorithm: str, /) -> float:
        return self.cold.get(algorithm, 4.0)

    def gpu_weight(self, _algorithm: str, /) -> float:
        return self.weight

    def state(self, algorithm: str, /) -> str:
        return self.states.get(algorithm, "off")

    def ready_in_s(self, algorithm: str, /) -> float:
        return 1.0 if self.state(algorithm) == "loading" else 0.0


CHAIN = ("t/a", "t/b", "t/c", "t/d")


def chain(policy: BreakEvenPolicy, request: str, at_s: float, names: tuple[str, ...] = CHAIN) -> None:
    """A request through these, ten seconds apart."""
    for index, name in enumerate(names):
        policy.called(Call(request, index, index - 1, name, "me", at_s + 10 * index, at_s + 10 * index))
    for index, name in reversed(list(enumerate(names))):
        policy.idle(name, at_s + 10 * len(names) + 10 - index)
    policy.finished(request, at_s + 10 * len(names) + 10)


def trained(latency_value: LatencyValue = 5.0, fleet: Fleet | None = None, times: int = 10) -> BreakEvenPolicy:
    policy = BreakEvenPolicy(fleet or Fleet(), latency_value)
    for k in range(times):
        chain(policy, f"r{k}", 1000.0 * k)
    return policy


def holds(actions: list[Action]) -> dict[str, Hold]:
    return {action.algorithm: action for action in actions if isinstance(action, Hold)}


def released(actions: list[Action]) -> set[str]:
    return {action.algorithm for action in actions if isinstance(action, Release)}


def test_what_follows_is_held_just_in_time_with_a_reason() -> None:
    held = holds(trained().called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)))

    assert set(held) == {"t/b", "t/c", "t/d"}
    for name, called_s in (("t/b", 10.0), ("t/c", 20.0), ("t/d", 30.0)):
        assert held[name].start_s == pytest.approx(50_000.0 + called_s - 4.0, abs=0.1)
        assert held[name].until_s >= 50_000.0 + called_s
        assert held[name].gain_per_gpu_s > 0.0
    assert held["t/b"].reason == f"next after t/a in 10.0 s, p = {held['t/b'].probability:.2f}"
    assert held["t/b"].probability > 0.95


def test_a_hop_elsewhere_releases_what_is_unlikely_now() -> None:
    policy = trained()
    for k in range(10):
        chain(policy, f"other{k}", 20_000.0 + 1000 * k, ("t/a", "t/x"))
    policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0))

    actions = policy.called(Call("new", 1, 0, "t/x", "me", 50_010.0, 50_010.0))

    assert {"t/b", "t/c", "t/d"} <= released(actions)


def test_the_end_of_a_request_releases_what_it_did_not_use() -> None:
    policy = trained()
    policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0))

    assert released(policy.finished("new", 50_001.0)) == {"t/b", "t/c", "t/d"}


def test_nothing_is_held_where_latency_is_worth_nothing() -> None:
    policy = trained(latency_value=0.0)

    assert policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)) == []
    assert holds(policy.idle("t/a", 50_001.0)) == {}


def test_latency_may_be_worth_differently_by_algorithm_and_caller() -> None:
    def value(algorithm: str, caller: str | None) -> float:
        return 5.0 if (algorithm, caller) == ("t/c", "me") else 0.0

    policy = trained(latency_value=value)

    assert set(holds(policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)))) == {"t/c"}
    assert not holds(policy.called(Call("new2", 0, -1, "t/a", "you", 50_000.0, 50_000.0)))


def test_what_needs_no_instance_is_never_held() -> None:
    policy = trained(fleet=Fleet(cold={"t/b": 0.0}))

    assert set(holds(policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)))) == {"t/c", "t/d"}


def test_the_stages_of_a_pipeline_are_started_at_once_the_first_time() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)

    held = holds(policy.called(LiveCall("r", 0, -1, "t/a", "me", 7.0, 11.0, route=("t/b", "t/c"))))

    assert {name: hold.start_s for name, hold in held.items()} == {"t/b": 7.0, "t/c": 7.0}
    assert held["t/b"].until_s > 1000.0
    assert held["t/b"].reason == "a stage after t/a of the same pipeline"
    assert released(policy.finished("r", 30.0)) == {"t/b", "t/c"}


def test_holds_name_the_version_called_last() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)
    for k, version in enumerate(("1.0.0", "1.1.0")):
        for index, name in enumerate(("t/a", "t/b")):
            policy.called(
                LiveCall(str(k), index, index - 1, name, "me", 100.0 * k + index, 100.0 * k + index, version=version)
            )
        policy.finished(str(k), 100.0 * k + 5)

    held = holds(policy.called(LiveCall("r", 0, -1, "t/a", "me", 500.0, 500.0, version="1.1.0")))

    assert held["t/b"].version == "1.1.0"


def test_an_algorithm_that_is_called_again_in_its_request_is_kept_for_that() -> None:
    policy = trained()
    fleet = policy._fleet
    assert isinstance(fleet, Fleet)
    for k in range(10):
        chain(policy, f"twice{k}", 100_000.0 + 1000 * k, ("t/p", "t/q", "t/p"))
    fleet.states = {"t/p": "warm"}

    held = holds(policy.called(Call("new", 0, -1, "t/p", "me", 500_000.0, 500_000.0)))

    assert held["t/p"].until_s >= 500_020.0


def test_gaps_that_are_short_are_kept_and_long_ones_are_not() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)  # keeping pays for 24 s
    for name, gap_s in (("t/busy", 3.0), ("t/rare", 5000.0)):
        at_s = 0.0
        actions: list[Action] = []
        for k in range(30):
            policy.called(Call(f"{name}{k}", 0, -1, name, "me", at_s, at_s))
            at_s += 1.0
            policy.finished(f"{name}{k}", at_s)
            actions = policy.idle(name, at_s)
            at_s += gap_s * random.Random(k).uniform(0.2, 1.8)
        first = next((a for a in actions if isinstance(a, Hold) and a.start_s <= at_s), None)
        if name == "t/busy":
            assert first is not None
            assert first.until_s >= first.start_s + 3.0
            assert first.reason.startswith("called about every")
        else:
            assert first is None or first.until_s - first.start_s < 24.0


def test_a_call_ends_the_windows_of_its_gap_that_are_to_come() -> None:
    policy = BreakEvenPolicy(Fleet(cold={"t/a": 1.0}), 5.0)
    actions: list[Action] = []
    for k in range(12):
        policy.called(Call(str(k), 0, -1, "t/a", "me", 60.0 * k, 60.0 * k))
        policy.finished(str(k), 60.0 * k + 0.1)
        actions = policy.idle("t/a", 60.0 * k + 0.1)
    later = [a for a in actions if isinstance(a, Hold) and a.start_s > 660.2]
    assert any(a.start_s < 719.0 and a.until_s > 720.0 for a in later)

    early = policy.called(Call("early", 0, -1, "t/a", "me", 670.0, 670.0))

    assert {a.key for a in early if isinstance(a, Release)} >= {a.key for a in later}


@pytest.mark.parametrize("switch", [{"path": False}, {"gaps": False}, {"order": 1}, {"pooling": False}])
def test_every_ablation_runs(switch: dict[str, object]) -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0, **switch)  # type: ignore[arg-type]  # a parametrized option
    for k in range(5):
        chain(policy, f"r{k}", 1000.0 * k)

    actions = policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0))

    assert bool(holds(actions)) is ("path" not in switch)


def test_the_same_events_give_the_same_answers() -> None:
    answers = [trained().called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)) for _ in range(2)]

    assert answers[0] == answers[1]


def test_the_learned_graph_has_the_edges_of_the_calls() -> None:
    edges = {(edge.caller, edge.callee): edge for edge in trained().graph()}

    assert set(edges) == {("t/a", "t/b"), ("t/b", "t/c"), ("t/c", "t/d")}
    assert edges["t/a", "t/b"].probability == pytest.approx(1.0)
    assert edges["t/a", "t/b"].delay_s == pytest.approx(10.0)
    assert 9.0 < edges["t/a", "t/b"].count <= 10.0


def pipeline(policy: BreakEvenPolicy, request: str, at_s: float, *steps: tuple[str, tuple[str, ...]]) -> None:
    """A request through these steps, a second apart: the algorithm, and what may still come after it."""
    for index, (name, route) in enumerate(steps):
        at = at_s + index
        policy.called(LiveCall(request, index, -1, name, "me", at, at, route=route, step=("", index)))
    policy.finished(request, at_s + len(steps))


def edges_of(policy: BreakEvenPolicy) -> dict[tuple[str, str], float]:
    return {(edge.caller, edge.callee): edge.probability for edge in policy.graph()}


def test_the_learned_graph_leads_from_step_to_step_of_a_pipeline() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)
    for number in range(3):
        pipeline(policy, f"r{number}", 100.0 * number, ("t/a", ("t/b", "t/c")), ("t/b", ("t/c",)), ("t/c", ()))

    assert edges_of(policy) == {("t/a", "t/b"): pytest.approx(1.0), ("t/b", "t/c"): pytest.approx(1.0)}


def test_all_branches_lead_to_what_joins_them() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)
    pipeline(policy, "r", 0.0, ("t/a", ("t/b", "t/c", "t/d")), ("t/b", ("t/d",)), ("t/c", ("t/d",)), ("t/d", ()))

    assert set(edges_of(policy)) == {("t/a", "t/b"), ("t/a", "t/c"), ("t/b", "t/d"), ("t/c", "t/d")}


def test_steps_that_are_told_in_another_order_have_the_same_edges() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)
    steps = [("t/a", ("t/b", "t/c")), ("t/b", ("t/c",)), ("t/c", ())]
    for index in (2, 0, 1):
        name, route = steps[index]
        policy.called(LiveCall("r", index, -1, name, "me", float(index), float(index), route=route, step=("", index)))
    policy.finished("r", 4.0)

    assert set(edges_of(policy)) == {("t/a", "t/b"), ("t/b", "t/c")}


def test_a_call_of_code_inside_a_pipeline_is_that_codes() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)
    policy.called(LiveCall("r", 0, -1, "t/a", "me", 0.0, 0.0, route=("t/b",), step=("", 0)))
    policy.called(LiveCall("r", 1, 0, "t/x", "me", 1.0, 1.0))
    policy.called(LiveCall("r", 2, -1, "t/b", "me", 2.0, 2.0, step=("", 1)))
    policy.finished("r", 3.0)

    assert set(edges_of(policy)) == {("t/a", "t/x"), ("t/a", "t/b")}


# ---- bad input


def test_an_event_told_twice_counts_once() -> None:
    once, twice = BreakEvenPolicy(Fleet(), 5.0), BreakEvenPolicy(Fleet(), 5.0)
    for policy, times in ((once, 1), (twice, 3)):
        for k in range(6):
            for index, name in enumerate(CHAIN):
                for attempt in range(times):
                    policy.called(
                        LiveCall(
                            f"r{k}", index, index - 1, name, "me", 100.0 * k + index, 0.0, attempt=1 + attempt // 2
                        )
                    )
            for _ in range(times):
                policy.finished(f"r{k}", 100.0 * k + 50)

    assert once.graph() == twice.graph()


def test_a_call_sent_again_plans_again() -> None:
    policy = trained()
    policy.called(LiveCall("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0))

    again = policy.called(LiveCall("new", 0, -1, "t/a", "me", 50_060.0, 50_060.0, attempt=2))
    echo = policy.called(LiveCall("new", 0, -1, "t/a", "me", 50_061.0, 50_061.0, attempt=2))

    assert again
    assert echo == []


def test_the_end_of_an_unknown_request_and_calls_after_an_end_do_nothing() -> None:
    policy = trained()

    assert policy.finished("never heard of", 1.0) == []
    assert policy.called(Call("r1", 9, 0, "t/b", "me", 50_000.0, 50_000.0)) == []


def test_lost_shuffled_and_doubled_events_and_a_stepping_clock_are_survived() -> None:
    rng = random.Random(6)
    policy = BreakEvenPolicy(Fleet(), 5.0)
    for k in range(120):
        at_s = 100.0 * k + rng.choice([0.0, 0.0, 0.0, -7200.0, 7200.0])
        calls = [Call(f"r{k}", i, i - 1, name, "me", at_s + i, at_s + i + 4) for i, name in enumerate(CHAIN)]
        events = [call for call in calls for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 2]))]
        if rng.random() < 0.3:
            rng.shuffle(events)
        for call in events:
            for action in policy.called(call):
                if isinstance(action, Hold):
                    assert action.start_s >= call.at_s - 1e-6 or action.why == "called"
                    assert action.until_s >= action.start_s
            if rng.random() < 0.9:
                policy.idle(call.algorithm, call.at_s + 5)
        if rng.random() < 0.9:
            policy.finished(f"r{k}", at_s + 20)

    held = holds(policy.called(Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)))
    assert {"t/b", "t/c", "t/d"} <= set(held)


def test_requests_that_never_end_are_forgotten_and_their_holds_released() -> None:
    policy = trained()
    policy.called(Call("endless", 0, -1, "t/a", "me", 50_000.0, 50_000.0))

    actions = policy.called(Call("later", 0, -1, "t/z", "me", 60_000.0, 60_000.0))

    assert released(actions) == {"t/b", "t/c", "t/d"}


def test_memory_is_bounded_in_requests_algorithms_and_contexts() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0, most_requests=20, most_algorithms=50, most_callees=300)
    for k in range(400):
        policy.called(Call(f"r{k}", 0, -1, f"t/x{k}", "me", float(k), float(k)))
        policy.called(Call(f"r{k}", 1, 0, f"t/y{k % 90}", "me", float(k), float(k)))
        if k % 2:
            policy.finished(f"r{k}", float(k))

    assert len(policy._requests) <= 21
    assert len(policy._algorithms.known) <= 50
    assert policy._counts.size <= 300


class Work:
    """What decisions cost, in what they weigh and count; time is another matter on a machine with others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weighed = self.counted = 0
        weigh, observe = Ahead.best, Node.observe

        def counted_best(ahead: Ahead, left_s: float | None) -> Window | None:
            self.weighed += 1
            return weigh(ahead, left_s)

        def counted_observe(node: Node, later: Iterable[Later], end_s: float | None) -> int:
            listed = list(later)
            self.counted += len(listed)
            return observe(node, listed, end_s)

        monkeypatch.setattr(Ahead, "best", counted_best)
        monkeypatch.setattr(Node, "observe", counted_observe)

    def take(self) -> tuple[int, int]:
        taken = self.weighed, self.counted
        self.weighed = self.counted = 0
        return taken


def test_of_500_algorithms_that_call_50_others_each_decision_does_a_bounded_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, work = random.Random(7), Work(monkeypatch)
    policy = BreakEvenPolicy(Fleet(), 5.0, most_callees=10_000)
    callees = {k: rng.sample(range(500), 50) for k in range(500)}
    called: list[tuple[int, int]] = []
    ended: list[tuple[int, int]] = []
    for k in range(20):
        at_s, caller = 100.0 * k, rng.randrange(500)
        for index, name in enumerate([caller, *callees[caller]]):
            at = at_s + 0.1 * index
            policy.called(Call(str(k), index, -1 if index == 0 else 0, f"t/x{name}", "me", at, at))
            called.append(work.take())
        policy.finished(str(k), at_s + 10)
        ended.append(work.take())

    weighed, counted = ([each[place] for each in called] for place in (0, 1))
    assert max(weighed) <= MOST_COMING
    assert sum(weighed) <= WEIGHED_EACH_CALL * len(called) + MOST_COMING * 20
    assert max(counted) <= 300 + 4 * 50  # one lesson more, of four contexts
    assert max(counted for _, counted in ended) <= 1_500 + 4 * 50
    assert not policy._lessons or len(policy._lessons) <= 2  # it keeps up


def test_all_that_a_first_call_makes_likely_is_held_also_fifty_at_once() -> None:
    policy = BreakEvenPolicy(Fleet(), 5.0)
    names = [f"t/x{k}" for k in range(50)]
    for number in range(6):
        at_s = 1_000.0 * number
        policy.called(Call(f"r{number}", 0, -1, "t/root", "me", at_s, at_s))
        for index, name in enumerate(names, 1):
            at = at_s + 30.0 + 0.01 * index
            policy.called(Call(f"r{number}", index, 0, name, "me", at, at))
        policy.finished(f"r{number}", at_s + 60.0)

    assert set(holds(policy.called(Call("new", 0, -1, "t/root", "me", 9_000.0, 9_000.0)))) == set(names)


def test_a_wait_that_was_shorter_than_expected_does_not_teach_a_short_delay() -> None:
    fleet = Fleet()
    policy = BreakEvenPolicy(fleet, 5.0)
    for number in range(12):
        at_s, key = 1000.0 * number, f"r{number}"
        policy.called(Call(key, 0, -1, CHAIN[0], None, at_s, at_s + 2.0))  # expected to take two seconds to start
        policy.started(key, 0, at_s + 0.5)
        policy.called(Call(key, 1, 0, CHAIN[1], None, at_s + 1.5, at_s + 1.5))
        policy.finished(key, at_s + 3.0)

    delays = {edge.callee: edge.delay_s for edge in policy.graph() if edge.caller == CHAIN[0]}
    assert delays[CHAIN[1]] == pytest.approx(1.0, abs=0.1)
