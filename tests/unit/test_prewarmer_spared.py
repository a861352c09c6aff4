"""Which calls were spared a wait: beside what a fixed idle time would have done."""

import pytest

from algomesh_broker.platform import Options
from algomesh_services.prewarmer.spared import Began, Help, Spared, SparedCall

B = "text/b/1.0.0"
IDLE_S, COLD_S = 60.0, 4.0


class Play:
    """One version; `help` is what the pre-warmer has done for it."""

    def __init__(self, options: Options | None = None) -> None:
        self.help: Help | None = None
        self.options: Options | None = options or Options(idle_s=IDLE_S)
        self.spared = Spared(lambda _: self.options, lambda _: self.help, lambda at_s: int(at_s // 60))

    def call(self, at_s: float, *, waited_s: float = 0.0, count: int = 1, was_running: bool = False) -> None:
        call = Began(B, f"run{at_s}", "root", "k~me", at_s, waited_s, count, waited_s > 0, was_running, "")
        self.spared.began(call)

    def rows(self) -> list[SparedCall]:
        return self.spared.take()[0]


def test_the_first_call_of_an_instance_started_ahead_is_spared_its_cold_start_less_what_it_waited() -> None:
    play = Play()
    play.help = Help("next", COLD_S, "host-1")
    play.call(1_000.0, waited_s=1.5)

    (row,) = play.rows()
    assert (row.run, row.root, row.version, row.caller, row.why) == ("run1000.0", "root", B, "k~me", "next")
    assert row.seconds == pytest.approx(2.5)


def test_calls_that_come_while_it_would_still_load_are_spared_the_rest_of_it() -> None:
    play = Play()
    play.help = Help("stage", COLD_S, "host-1")
    for at_s in (0.0, 1.0, 3.0, 4.5):
        play.call(1_000.0 + at_s, was_running=at_s > 0)

    assert [(row.seconds, row.why) for row in play.rows()] == [(4.0, "stage"), (3.0, "stage"), (1.0, "stage")]


def test_a_call_that_meets_an_instance_kept_beyond_its_idle_time_is_spared_the_cold_start() -> None:
    play = Play()
    play.call(1_000.0, waited_s=COLD_S)  # nothing helped it
    play.spared.used(B, 1_005.0)
    play.help = Help("kept", COLD_S)
    play.call(1_005.0 + IDLE_S - 1.0)  # up anyway
    play.spared.used(B, 1_070.0)
    play.call(1_070.0 + IDLE_S + 1.0)

    assert [(row.called_s, row.seconds, row.why) for row in play.rows()] == [(1_131.0, 4.0, "kept")]


def test_a_cold_start_that_nothing_helped_is_not_spared_whatever_it_took() -> None:
    play = Play()
    play.call(1_000.0, waited_s=3.0)
    play.call(1_001.0, waited_s=2.0, was_running=True)

    assert play.spared.take() == ([], {})


@pytest.mark.parametrize("options", [Options(min_instances=1), Options(prewarm=False)])
def test_what_is_up_for_other_reasons_counts_for_nothing(options: Options) -> None:
    play = Play(options)
    play.help = Help("kept", COLD_S)
    play.call(1_000.0)

    assert play.rows() == []


def test_nothing_is_counted_while_the_options_are_not_known() -> None:
    play = Play()
    play.options, play.help = None, Help("kept", COLD_S)
    play.call(1_000.0)
    play.options = Options(idle_s=IDLE_S)
    play.call(1_001.0)

    assert play.rows() == []


def test_a_call_that_was_seen_for_many_counts_as_many() -> None:
    play = Play()
    play.help = Help("gap", COLD_S, "host-1")
    play.call(1_000.0, count=8)

    rows, totals = play.spared.take()
    assert [(row.seconds, row.calls) for row in rows] == [(4.0, 8)]
    assert totals == {(16, "gap"): (8, 32.0)}


def test_what_is_too_much_to_list_is_counted_all_the_same() -> None:
    play = Play()
    play.help = Help("next", 1e6, "host-1")
    for number in range(5_000):
        play.call(1_000.0 + number / 1e3, was_running=number > 0)

    rows, totals = play.spared.take()
    assert len(rows) == 1_000
    assert sum(calls for calls, _ in totals.values()) == 5_000


def test_what_could_not_be_written_is_written_later() -> None:
    play = Play()
    play.help = Help("next", COLD_S, "host-1")
    play.call(1_000.0)
    taken = play.spared.take()
    play.call(1_001.0, was_running=True)
    play.spared.give_back(*taken)

    rows, totals = play.spared.take()
    assert [row.called_s for row in rows] == [1_000.0, 1_001.0]
    assert totals == {(16, "next"): (2, 7.0)}


def test_an_instance_started_ahead_spares_its_first_calls_only() -> None:
    play = Play()
    play.help = Help("next", COLD_S, "host-1")
    for at_s in (1_000.0, 1_004.5, 1_030.0):
        play.call(at_s)
    play.help = Help("next", COLD_S, "host-2")
    play.call(1_031.0)

    assert [row.called_s for row in play.rows()] == [1_000.0, 1_031.0]
