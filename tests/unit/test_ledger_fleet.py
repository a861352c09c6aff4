"""Which instances the ledger takes for gone."""

from algomesh_services.ledger.fleet import REMEMBER_S, SETTLE_S, SILENT_S, Deaths, Gone


def test_a_death_counts_when_the_last_events_have_had_time_to_come() -> None:
    deaths = Deaths(began_at=0.0)
    deaths.on_death("host-1", "crash", now=10.0)

    assert deaths.due(10.0 + SETTLE_S - 0.1) == []
    assert deaths.due(10.0 + SETTLE_S) == [Gone("crash", ["host-1"])]
    assert deaths.due(10.0 + REMEMBER_S) == [Gone("crash", ["host-1"])]
    assert deaths.due(10.1 + REMEMBER_S) == []


def test_deaths_are_gathered_by_reason() -> None:
    deaths = Deaths(began_at=0.0)
    deaths.on_death("host-1", "crash", now=0.0)
    deaths.on_death("host-2", "timeout", now=0.0)
    deaths.on_death("host-3", "crash", now=0.0)

    assert deaths.due(5.0) == [Gone("crash", ["host-1", "host-3"]), Gone("timeout", ["host-2"])]


def test_instances_of_a_launcher_that_beats_are_at_home() -> None:
    deaths = Deaths(began_at=0.0)
    deaths.on_beat("host", now=95.0, is_alive=True)
    deaths.on_beat("old", now=80.0, is_alive=True)

    assert deaths.homeless(["host-1", "hostile-1", "old-1"], now=100.0) == ["hostile-1", "old-1"]


def test_a_goodbye_is_believed() -> None:
    deaths = Deaths(began_at=0.0)
    deaths.on_beat("host", now=95.0, is_alive=True)
    deaths.on_beat("host", now=96.0, is_alive=False)

    assert deaths.homeless(["host-1"], now=100.0) == ["host-1"]


def test_nobody_is_homeless_before_beats_could_be_heard() -> None:
    deaths = Deaths(began_at=95.0)

    assert deaths.homeless(["host-1"], now=95.0 + SILENT_S - 1) == []
    deaths.on_silence(now=200.0)
    assert deaths.homeless(["host-1"], now=200.0 + SILENT_S - 1) == []
    assert deaths.homeless(["host-1"], now=200.0 + SILENT_S) == ["host-1"]


def test_what_it_remembers_is_bounded() -> None:
    deaths = Deaths(began_at=0.0)

    for number in range(30_000):
        deaths.on_death(f"host-{number}", "crash", now=0.0)

    assert sum(len(gone.instances) for gone in deaths.due(5.0)) == 10_000
