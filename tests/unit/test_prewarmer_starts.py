import pytest

from algomesh_broker.messages import MachineInstance
from algomesh_services.prewarmer.holding import Wish
from algomesh_services.prewarmer.live_fleet import Up
from algomesh_services.prewarmer.speculation import Speculation
from algomesh_services.prewarmer.starts import Start, Starts

B = "text/b/1.0.0"
WISH = Wish("text/b", "path:r1", B, 100.0, 110.0, "next", "next after text/a in 2.0 s, p = 0.90", 1.0, "text/a", "k~me")


class Play:
    """One instance's life, as its launcher tells of it."""

    def __init__(self, *, key: str = "path:r1", reason: str = "", known: dict[str, Start] | None = None) -> None:
        self.speculation = Speculation()
        self.starts = Starts(
            lambda version, key: WISH if (version, key) == (B, WISH.key) else None,
            lambda _: 0.5,
            self.speculation,
            known,
        )
        self.key, self.reason = key, reason
        self.up = Up(self.row(0), "host", "text/b", 100.0)
        self.start = self.starts.came(self.up, 100.0)

    def row(self, age_ms: int, **fields: object) -> MachineInstance:
        known: dict[str, object] = {
            "instance": "host-1", "version": B, "state": "starting", "age_ms": age_ms, "key": self.key,
            "reason": self.reason,
        }  # fmt: skip
        return MachineInstance(**known | fields)  # type: ignore[arg-type]

    def tell(self, now: float, **fields: object) -> None:
        self.up.tell(self.row(int((now - 100.0) * 1000), **fields), now)
        self.starts.told(self.up, now)


@pytest.mark.parametrize(
    ("key", "reason", "kind"),
    [
        ("", "2 parked calls", "call"),
        ("", "kept warm: min_instances 1", "minimum"),
        ("path:r1", "", "next"),
        ("path:unknown", "stage 2 of a pipeline under way", "stage"),
        ("path:unknown", "next after text/a in 1.0 s", "next"),
        ("gap:1", "called about every 12 s", "gap"),
    ],
)
def test_a_start_has_a_kind(key: str, reason: str, kind: str) -> None:
    assert Play(key=key, reason=reason).start.kind == kind


def test_a_start_in_time_saves_the_whole_cold_start() -> None:
    play = Play()
    play.tell(101.0, start_ms=1_000, idle_ms=0)
    play.tell(103.0, start_ms=1_000, idle_ms=2_000)
    play.starts.called(B, 104.0, "text/a")
    play.tell(104.0, start_ms=1_000, idle_ms=-1)

    assert play.start.saved_s == pytest.approx(1.0)
    assert play.start.in_time
    assert play.start.used_s == 104.0
    assert play.start.held_s == pytest.approx(3.0)
    assert play.speculation.may("k~me", 104.0)


def test_a_start_that_is_not_done_in_time_saves_what_it_had_done() -> None:
    play = Play()
    play.starts.called(B, 100.4, "text/a")
    play.tell(101.0, start_ms=1_000, idle_ms=-1)

    assert play.start.saved_s == pytest.approx(0.4)
    assert not play.start.in_time


def test_a_start_for_a_call_saves_nothing() -> None:
    play = Play(key="")
    play.starts.called(B, 99.9, "text/a")
    play.tell(101.0, start_ms=1_000, idle_ms=-1, runs_total=1)

    assert play.start.saved_s == 0.0
    assert play.start.used_s > 0.0
    assert play.start.after == "text/a"


def test_what_is_not_used_is_charged_to_whom_it_was_for() -> None:
    play = Play()
    for second in range(1, 201):
        play.tell(100.0 + second, start_ms=1_000, idle_ms=1_000)
    play.starts.gone(play.up, 301.0)

    assert play.start.used_s == 0.0
    assert play.start.ended_s == 301.0
    assert not play.speculation.may("k~me", 301.0)  # a hundred GPU-seconds


def test_what_changed_is_written_and_what_could_not_be_written_comes_back() -> None:
    play = Play()
    changed = play.starts.take_changed()
    assert changed == [play.start]
    assert play.starts.take_changed() == []

    play.starts.give_back(changed)

    assert play.starts.take_changed() == [play.start]


def test_an_instance_that_outlives_us_keeps_its_record() -> None:
    before = Start(
        instance="host-1", launcher="host", version=B, kind="gap", reason="called about every 9 s", started_s=50.0,
        gpu=0.5, held_s=7.0,
    )  # fmt: skip
    other = Start(instance="host-9", launcher="host", version=B, kind="call", reason="", started_s=50.0, gpu=0.5)
    play = Play(known={"host-1": before, "host-9": other})

    assert play.start is before
    play.starts.forget_known(120.0)
    assert other.ended_s == 120.0
    assert before.ended_s == 0.0
