import pytest

from algomesh_broker.messages import Machine, MachineInstance
from algomesh_services.prewarmer.live_fleet import FIRST_GUESS_S, SILENT_S, LiveFleet


class Time:
    now = 1_000.0


def row(instance: str, version: str = "text/b/1.0.0", **fields: object) -> MachineInstance:
    known: dict[str, object] = {"instance": instance, "version": version, "state": "ready", "age_ms": 0}
    return MachineInstance(**known | fields)  # type: ignore[arg-type]


def fleet() -> tuple[LiveFleet, Time]:
    time = Time()
    return LiveFleet(lambda: time.now, lambda version: 0.5), time


def hear(fleet: LiveFleet, time: Time, *rows: MachineInstance, launcher: str = "host") -> None:
    fleet.hear(Machine(launcher=launcher, instances=list(rows)), time.now)


def test_states_follow_what_launchers_say() -> None:
    live, time = fleet()
    assert live.state("text/b") == "off"
    live.called("text/b", "text/b/1.0.0")

    hear(live, time, row("host-1", state="starting", age_ms=300))
    assert live.state("text/b") == "loading"
    assert live.ready_in_s("text/b") == pytest.approx(FIRST_GUESS_S - 0.3)

    hear(live, time, row("host-1", age_ms=500, start_ms=400, idle_ms=10))
    assert live.state("text/b") == "warm"
    assert live.ready_in_s("text/b") == 0.0
    assert live.cold_start_s("text/b") == pytest.approx(0.4)
    assert live.gpu_weight("text/b") == 0.5
    assert not live.is_working("text/b")
    assert live.idle_since_s("text/b") == pytest.approx(time.now - 0.01)

    hear(live, time, row("host-1", age_ms=600, start_ms=400, idle_ms=-1))
    assert live.is_working("text/b")
    assert live.idle_since_s("text/b") is None

    hear(live, time, row("host-1", age_ms=700, start_ms=400, idle_ms=0, state="draining"))
    assert live.state("text/b") == "off"

    hear(live, time)
    assert live.idle_since_s("text/b") == float("-inf")


def test_a_load_that_takes_longer_than_usual_is_not_expected_to_end_now() -> None:
    live, time = fleet()
    hear(live, time, row("host-1", state="starting", age_ms=60_000))

    assert live.ready_in_s("text/b") == pytest.approx(0.1 * FIRST_GUESS_S)


def test_a_silent_machine_is_gone_with_all_it_had() -> None:
    live, time = fleet()
    hear(live, time, row("one-1", start_ms=100, idle_ms=0), launcher="one")
    hear(live, time, row("two-1", start_ms=100, idle_ms=0), launcher="two")
    time.now += SILENT_S - 1
    hear(live, time, row("two-1", start_ms=100, idle_ms=0), launcher="two")
    time.now += 2

    gone = live.drop_silent(time.now)

    assert [up.instance for up in gone] == ["one-1"]
    assert live.state("text/b") == "warm"
    time.now += SILENT_S + 1
    assert [up.instance for up in live.drop_silent(time.now)] == ["two-1"]
    assert live.state("text/b") == "off"
    assert not live.is_heard


def test_cold_starts_are_medians_per_version_and_machine_and_follow_changes() -> None:
    live, _ = fleet()
    live.called("text/b", "text/b/1.0.0")
    for took_s in (2.0, 2.1, 60.0, 1.9, 2.0):
        live.learn_start("text/b/1.0.0", "one", took_s)
    assert live.cold_start_s("text/b") == pytest.approx(2.0)

    live.learn_start("text/b/1.0.0", "two", 4.0)
    assert live.cold_start_s("text/b") == pytest.approx(3.0)

    for _ in range(20):
        live.learn_start("text/b/1.0.0", "one", 8.0)
    assert live.cold_start_s("text/b") == pytest.approx(6.0)


def test_a_new_version_begins_with_its_predecessors_cold_start() -> None:
    live, _ = fleet()
    live.learn_start("text/b/1.0.0", "one", 7.0)
    live.called("text/b", "text/b/2.0.0")

    assert live.cold_start_s("text/b") == 7.0
    live.learn_start("text/b/2.0.0", "one", 3.0)
    assert live.cold_start_s("text/b") == 3.0


def test_only_the_version_that_is_called_counts_as_up() -> None:
    live, time = fleet()
    hear(live, time, row("host-1", start_ms=100, idle_ms=0))
    live.called("text/b", "text/b/2.0.0")

    assert live.state("text/b") == "off"


def test_a_start_long_before_us_is_no_news() -> None:
    live, time = fleet()
    changes = live.hear(
        Machine(launcher="host", instances=[row("host-1", age_ms=60_000, start_ms=400, idle_ms=9)]), time.now
    )

    assert changes.started == []
    assert [up.instance for up in changes.come] == ["host-1"]


def test_what_has_no_readable_version_is_left_out() -> None:
    live, time = fleet()
    hear(live, time, row("host-1", "not a version"), row("host-2", start_ms=5, idle_ms=0))

    assert live.state("text/b") == "warm"
