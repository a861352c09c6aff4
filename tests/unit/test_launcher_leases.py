"""What leases say, when silence means death, and whose instance an id is."""

import pytest

from algomesh.instance.contained import lease_of
from algomesh.instance.watch import SIZE_BYTES, Phase, WatchReader, WatchWriter
from algomesh_broker.boot import Boot
from algomesh_broker.errors import BadMessage
from algomesh_broker.messages import InstanceLease, LeasePhase
from algomesh_broker.platform import Options
from algomesh_services.launcher.externals import host_of
from algomesh_services.launcher.leases import RECONNECT_S, SILENT_S, Leases, LeaseWatch

S = 10**9


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def say(leases: Leases, phase: LeasePhase = "ready") -> None:
    leases.take(InstanceLease(instance="a-1", phase=phase))


def pass_time(leases: Leases, clock: Clock, seconds: float) -> dict[str, float]:
    """Look five times a second, as the launcher does."""
    silent: dict[str, float] = {}
    for _ in range(round(seconds * 5)):
        clock.now += 0.2
        silent = leases.silent(clock.now)
    return silent


def test_a_lease_has_the_face_of_a_watch_page() -> None:
    watch = LeaseWatch()
    assert watch.phase is Phase.FORKED

    watch.take(InstanceLease(instance="a-1", phase="loading"), 7.0)
    watch.take(InstanceLease(instance="a-1", phase="ready", active=2, total=9), 8.0)

    assert (watch.phase, watch.active, watch.runs_total) == (Phase.READY, 2, 9)
    assert (watch.began_ns(Phase.LOADING), watch.began_ns(Phase.READY)) == (7 * S, 8 * S)
    assert watch.began_ns(Phase.DRAINING) == 0
    assert not watch.overdue(1000 * S)


def test_a_run_is_overdue_as_soon_as_a_lease_says_so() -> None:
    watch = LeaseWatch()

    watch.take(InstanceLease(instance="a-1", phase="ready", active=1, overdue_ms=500), 8.0)

    assert watch.deadline_ns == round(7.5 * S)
    assert watch.overdue(8 * S)


def test_its_end_keeps_the_phase_and_says_why() -> None:
    watch = LeaseWatch()
    watch.take(InstanceLease(instance="a-1", phase="loading", active=1), 1.0)

    watch.take(InstanceLease(instance="a-1", phase="ended", failure="load_failed no weights here"), 2.0)

    assert watch.has_ended
    assert (watch.phase, watch.active) == (Phase.LOADING, 0)
    assert watch.why_failed == ("load_failed", "no weights here")


def test_a_code_of_its_own_making_is_a_failed_load() -> None:
    watch = LeaseWatch()

    watch.take(InstanceLease(instance="a-1", phase="ended", failure="no_capacity go away"), 2.0)

    assert watch.why_failed == ("load_failed", "go away")


def test_silence_counts_from_the_first_lease_on(clock: Clock) -> None:
    leases = Leases(clock)
    leases.expect("a-1")

    assert pass_time(leases, clock, 60) == {}

    say(leases)
    assert pass_time(leases, clock, SILENT_S - 0.2) == {}
    assert list(pass_time(leases, clock, 0.6)) == ["a-1"]


def test_nobody_is_silent_while_the_launcher_could_not_hear(clock: Clock) -> None:
    leases = Leases(clock)
    leases.expect("a-1")
    say(leases)
    pass_time(leases, clock, 2.0)

    leases.forgive()

    assert pass_time(leases, clock, RECONNECT_S - 0.4) == {}
    assert list(pass_time(leases, clock, 1.0)) == ["a-1"]


def test_a_launcher_that_stood_still_looks_again_before_it_kills(clock: Clock) -> None:
    leases = Leases(clock)
    leases.expect("a-1")
    say(leases)
    pass_time(leases, clock, 1.0)

    clock.now += 20.0

    assert leases.silent(clock.now) == {}
    say(leases)
    assert pass_time(leases, clock, SILENT_S - 0.4) == {}


def test_what_is_not_expected_goes_elsewhere(clock: Clock) -> None:
    leases = Leases(clock)
    heard: list[str] = []
    leases.on_unexpected = lambda lease, _: heard.append(lease.instance)
    leases.expect("a-1")
    leases.forget("a-1")

    say(leases)

    assert heard == ["a-1"]


@pytest.mark.parametrize(
    ("instance", "host"),
    [("xabcd1234-1", "xabcd1234"), ("xabcd123-1", ""), ("abcdefgh-1", ""), ("xabcd1234-1-2", ""), ("xabcd1234", "")],
)
def test_external_instances_are_known_by_their_ids(instance: str, host: str) -> None:
    assert host_of(instance) == host


def make_boot(**options: object) -> Boot:
    fields: dict[str, object] = {
        "instance": "a-1", "launcher": "a", "owner": "o", "name": "n", "version": "1.0.0", "folder": "/f",
        "entry": "e:m", "nats_url": "nats://here", "token": "ai_x", "options": Options(calls=["a/b"]), "launched_ns": 5,
    }  # fmt: skip
    return Boot(**{**fields, **options})  # type: ignore[arg-type]


def test_a_boot_record_travels_as_one_line() -> None:
    boot = make_boot(command=["node", "main.js"], reason="two\nlines")

    line = boot.as_line()

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert Boot.of_line(line) == boot


@pytest.mark.parametrize("line", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_boot_record_is_a_bad_message(line: bytes) -> None:
    with pytest.raises(BadMessage):
        Boot.of_line(line)


def test_a_container_says_what_its_watch_page_shows() -> None:
    page = bytearray(SIZE_BYTES)
    writer, reader = WatchWriter(page), WatchReader(page)
    writer.enter(Phase.READY)
    writer.begin("r1", 10 * S)

    on_time, late = lease_of(make_boot(), reader, 10 * S), lease_of(make_boot(), reader, 10 * S + 250_000_000)

    assert on_time == InstanceLease(instance="a-1", phase="ready", active=1, total=1)
    assert late.overdue_ms == 250
