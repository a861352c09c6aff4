"""What the launcher knows of the pre-warmer's wishes, at any moment."""

from typing import Any

from algomesh_broker.messages import Hold, Holds
from algomesh_broker.names import VersionId
from algomesh_services.launcher.holds import GRACE_S, SILENT_AFTER_S, HoldBook

A, B = (VersionId.parse(f"demo/{name}/1.0.0") for name in "ab")
NOW = 1_000.0


def hold(version: VersionId = A, key: str = "gap:0", start_ms: int = 0, until_ms: int = 10_000, **more: Any) -> Hold:
    more.setdefault("reason", "called about every 12 s")
    return Hold(version=str(version), key=key, start_ms=start_ms, until_ms=until_ms, **more)


def whole(*holds: Hold, off: tuple[str, ...] = ()) -> Holds:
    return Holds(holds=list(holds), is_whole=True, off=list(off))


def heard(*said: Holds, most: int = 100) -> HoldBook:
    """A book after each of these, all said NOW."""
    book = HoldBook(most)
    for each in said:
        book.take(each, NOW)
    return book


def keys(book: HoldBook, now: float = NOW) -> dict[str, str]:
    return {str(version): held.key for version in book.held(now) if (held := book.current(version, now)) is not None}


def test_a_hold_counts_from_its_start_until_its_end() -> None:
    book = heard(whole(hold(start_ms=500, until_ms=900)))

    times = (NOW, NOW + 0.499, NOW + 0.5, NOW + 0.899, NOW + 0.9)
    assert [book.current(A, now) is not None for now in times] == [False, False, True, True, False]


def test_the_hold_with_the_highest_gain_counts() -> None:
    book = heard(whole(hold(key="low", gain=1), hold(key="high", gain=2), hold(key="later", start_ms=100, gain=3)))

    assert keys(book) == {str(A): "high"}
    assert keys(book, NOW + 0.1) == {str(A): "later"}


def test_a_whole_set_replaces_all_that_was_said_before() -> None:
    book = heard(whole(hold(A)), whole(hold(B)))

    assert keys(book) == {str(B): "gap:0"}


def test_what_changes_in_between_is_added_replaced_and_released() -> None:
    book = heard(whole(hold(A), hold(B)))

    book.take(Holds(holds=[hold(A, reason="sooner")], released=[(str(B), "gap:0"), (str(B), "nothing")]), NOW + 1)

    assert keys(book, NOW + 1) == {str(A): "gap:0"}
    held = book.current(A, NOW + 1)
    assert held is not None
    assert (held.reason, held.until_at) == ("sooner", NOW + 11)


def test_before_anything_whole_was_said_nothing_counts() -> None:
    assert keys(heard(Holds(holds=[hold()]))) == {}


def test_silence_ends_all_holds_and_fixed_idle_times_return() -> None:
    book = heard(whole(hold(until_ms=60_000)))
    book.take(Holds(holds=[hold(B, until_ms=60_000)]), NOW + SILENT_AFTER_S - 1)  # what changes is no sign of life

    assert book.manages(A, NOW + SILENT_AFTER_S)
    assert not book.manages(A, NOW + SILENT_AFTER_S + 0.01)
    assert keys(book, NOW + SILENT_AFTER_S + 0.01) == {}


def test_after_a_silence_old_holds_do_not_come_back() -> None:
    book = heard(whole(hold(A, until_ms=60_000)))

    book.take(Holds(holds=[hold(B)]), NOW + 10)
    book.take(whole(hold(B)), NOW + 10)

    assert keys(book, NOW + 10) == {str(B): "gap:0"}


def test_versions_that_are_off_are_left_alone() -> None:
    book = heard(whole(off=(str(A),)))

    assert [book.manages(version, NOW) for version in (A, B)] == [False, True]


def test_nothing_is_unheld_for_longer_than_the_prewarmer_is_there() -> None:
    assert heard(whole()).unheld_since(A, NOW + 3) == NOW


def test_a_version_is_unheld_since_its_last_hold_was_released() -> None:
    book = heard(whole(hold(key="one"), hold(key="two")))

    book.take(Holds(holds=[], released=[(str(A), "one")]), NOW + 1)
    book.take(Holds(holds=[], released=[(str(A), "two")]), NOW + 2)

    assert book.unheld_since(A, NOW + 3) == NOW + 2


def test_a_version_is_unheld_since_its_hold_ended_was_left_out_or_was_put_off() -> None:
    ended, left_out, put_off = (heard(whole(hold(until_ms=2_000))) for _ in range(3))

    left_out.take(whole(), NOW + 1)
    put_off.take(Holds(holds=[hold(start_ms=5_000)]), NOW + 1)

    assert [book.unheld_since(A, NOW + 3) for book in (ended, left_out, put_off)] == [NOW + 2, NOW + 1, NOW + 1]
    ended.take(whole(), NOW + 3)
    assert ended.unheld_since(A, NOW + 4) == NOW + 2


def test_edges_are_where_a_hold_begins_and_a_grace_after_it_ends() -> None:
    book = heard(whole(hold(start_ms=1_500, until_ms=2_000)))

    edges, after = [], NOW
    while (edge := book.next_edge(after)) is not None:
        edges.append(edge)
        after = edge

    assert edges == [NOW + GRACE_S, NOW + 1.5, NOW + 2 + GRACE_S]
    assert book.next_edge(NOW + GRACE_S, {A}) == NOW + 2 + GRACE_S


def test_a_hold_that_is_late_takes_away_the_one_it_replaces() -> None:
    book = heard(whole(hold(A), hold(B, until_ms=0)))
    book.take(Holds(holds=[hold(A, start_ms=5, until_ms=0)]), NOW)

    assert keys(book) == {}


def test_what_makes_no_sense_is_left_out() -> None:
    nonsense = [hold(key="k" * 10_000), hold(key="nan", gain=float("nan"), start_ms=-5)]
    foreign = Hold(version="../../etc", key="x", start_ms=0, until_ms=5_000, reason="")

    book = heard(Holds(holds=[*nonsense, foreign], released=[("", "")], is_whole=True))

    assert keys(book) == {str(A): "nan"}


def test_too_many_holds_leave_those_with_the_highest_gain() -> None:
    many = [hold(VersionId.parse(f"demo/a{n}/1.0.0"), gain=n) for n in range(10)]

    book = heard(whole(*many), Holds(holds=[hold(B, gain=99)]), most=3)

    assert sorted(keys(book)) == [f"demo/a{n}/1.0.0" for n in (7, 8, 9)]
    book.take(Holds(holds=[hold(B)], released=[("demo/a7/1.0.0", "gap:0")]), NOW)
    assert str(B) in keys(book)


def test_a_hold_for_another_launcher_is_none_and_takes_back_what_was_ours() -> None:
    book = HoldBook(launcher="host-a")
    book.take(whole(hold(A, launcher="host-b"), hold(B, launcher="host-a")), NOW)
    assert keys(book) == {str(B): "gap:0"}

    book.take(Holds(holds=[hold(B, launcher="host-b"), hold(A, launcher="")]), NOW + 1)
    assert keys(book, NOW + 1) == {str(A): "gap:0"}
