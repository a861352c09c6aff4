"""Counts of what follows what: back-off, decay, bounds; and samples of delays."""

import pytest

from algomesh_services.prewarmer.counts import MOST_CALLEES, Counts, Later
from algomesh_services.prewarmer.decay import KEEP, MEMORY
from algomesh_services.prewarmer.delays import SIZE, LoadSpread, Recent, quantile


def later(*names: str) -> list[Later]:
    return [Later(name, 1.0, "a/a", False) for name in names]


def test_a_context_backs_off_into_the_more_general_one() -> None:
    counts = Counts(order=2)
    followed, alone = counts.contexts("r", "me", ["p", "x"]), counts.contexts("r", "me", ["q", "x"])
    for _ in range(5):
        counts.learn(followed, later("y"), None)
    for _ in range(2):  # the first time, only (q, x) is new; the second makes (me, q, x)
        counts.learn(alone, [], None)

    seen = [sum(KEEP**k for k in range(n)) for n in range(8)]
    general = (seen[7] - seen[2]) / (seen[7] + 1)
    middle = (0 + general) / (seen[2] + 1)
    assert counts.predict(counts.contexts("r", None, ["z", "x"])).probabilities()["y"] == pytest.approx(general)
    assert counts.predict(alone).probabilities()["y"] == pytest.approx((0 + middle) / (seen[1] + 1))


def test_about_the_last_fifty_observations_count() -> None:
    counts = Counts(order=1)
    context = counts.contexts("r", None, ["x"])
    for _ in range(500):
        counts.learn(context, later("old"), None)
    for _ in range(int(MEMORY)):
        counts.learn(context, later("new"), None)

    found = counts.predict(context).probabilities()

    assert found["old"] == pytest.approx(0.36, abs=0.02)  # 1/e
    assert found["new"] == pytest.approx(0.62, abs=0.02)


def test_the_root_and_three_calls_tell_requests_apart() -> None:
    counts = Counts()
    for _ in range(20):
        counts.learn(counts.contexts("r1", None, ["a", "b", "c"]), later("left"), None)
        counts.learn(counts.contexts("r2", None, ["a", "b", "c"]), later("right"), None)

    found = counts.predict(counts.contexts("r1", None, ["a", "b", "c"])).probabilities()

    assert found["left"] > 0.95
    assert found["right"] < 0.05


def test_specific_contexts_that_never_repeat_are_not_kept() -> None:
    counts = Counts()
    for k in range(100):
        counts.learn(counts.contexts("r", None, [f"p{k}", "x"]), later("y"), None)

    assert len(counts.nodes) == 100  # of x, and of each previous call but the first; nothing beyond


def test_memory_is_bounded_by_forgetting_the_oldest_contexts() -> None:
    counts = Counts(most=500)
    for k in range(2000):
        counts.learn(counts.contexts("r", None, [f"x{k}"]), later("y", "z"), None)

    assert counts.size <= 500
    assert counts.size == sum(1 + len(node.callees) for node in counts.nodes.values())
    assert counts.predict(counts.contexts("r", None, ["x1999"])).probabilities()
    assert not counts.predict(counts.contexts("r", None, ["x0"])).probabilities()


def test_an_algorithm_with_ever_new_callees_keeps_the_likely_ones() -> None:
    counts = Counts(order=1)
    context = counts.contexts("r", None, ["x"])
    for k in range(MOST_CALLEES + 100):
        counts.learn(context, later("always", f"once{k}"), None)

    found = counts.predict(context).probabilities()

    assert len(found) <= MOST_CALLEES
    assert found["always"] > 0.9


def test_specific_delays_come_before_general_ones() -> None:
    counts = Counts(order=2)
    for caller, delay in (("slow", 9.0), ("fast", 1.0)):
        for _ in range(SIZE):
            counts.learn(counts.contexts("r", caller, [caller, "x"]), [Later("y", delay, "x", True)], None)

    parent, delays = counts.predict(counts.contexts("r", "slow", ["slow", "x"])).of("y")

    assert parent == "x"
    assert delays == [9.0] * SIZE


def test_edges_are_of_calls_an_algorithm_makes_itself() -> None:
    counts = Counts()
    for _ in range(10):
        counts.learn(counts.contexts("a", None, ["a"]), [Later("b", 1.0, "a", True), Later("c", 2.0, "b", False)], 3.0)

    assert [(a, b) for a, b, _, _, _ in counts.edges()] == [("a", "b")]


def test_quantiles_lie_between_order_statistics_and_a_little_outside() -> None:
    ordered = [1.0, 2.0, 3.0]

    assert quantile(ordered, 0.5) == pytest.approx(2.0)
    assert quantile(ordered, 0.375) == pytest.approx(1.5)
    assert quantile(ordered, 0.01) < 1.0
    assert quantile(ordered, 0.99) > 3.0
    assert quantile([4.0], 0.1) == 4.0


def test_recent_values_are_the_last_ones_in_order() -> None:
    recent = Recent()
    for k in range(SIZE + 3):
        recent.add(float(k))

    assert recent.in_order() == [float(k) for k in range(3, SIZE + 3)]


def test_the_spread_of_loads_is_measured_and_a_hung_one_does_not_count_for_ever() -> None:
    loads = LoadSpread()
    assert set(loads.factors) == {1.0}
    for measured in (4.0, 5.0, 6.0, 1e9):
        loads.add(measured, 5.0)

    assert min(loads.factors) < 1.0 < max(loads.factors) < 50.0
