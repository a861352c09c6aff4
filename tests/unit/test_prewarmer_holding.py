import pytest

from algomesh_services.prewarmer.holding import LEAD_S, Wish, Wishes

LEAD_MS = round(LEAD_S * 1000)


def wish(key: str, start_s: float, until_s: float, *, gain: float = 1.0, version: str = "text/b/1.0.0") -> Wish:
    return Wish(version.rpartition("/")[0], key, version, start_s, until_s, "next", f"because of {key}", gain)


def everything(_: Wish) -> bool:
    return True


def test_what_is_wished_for_is_told_once_relative_to_now() -> None:
    wishes = Wishes(everything)
    wishes.put(wish("path:1", 101.5, 103.0))

    told = wishes.changes(100.0)

    assert told is not None
    assert [(hold.key, hold.start_ms, hold.until_ms) for hold in told.holds] == [("path:1", 1_500 - LEAD_MS, 3_000)]
    assert not told.is_whole
    assert wishes.changes(100.1) is None


def test_a_wish_under_the_same_key_replaces_the_one_before() -> None:
    wishes = Wishes(everything)
    wishes.put(wish("path:1", 101.0, 103.0))
    wishes.changes(100.0)
    wishes.put(wish("path:1", 101.0, 105.0))

    told = wishes.changes(100.0)

    assert told is not None
    assert [hold.until_ms for hold in told.holds] == [5_000]
    assert told.released == []
    assert len(wishes) == 1


def test_a_wish_that_goes_to_another_version_leaves_the_old_one() -> None:
    wishes = Wishes(everything)
    wishes.put(wish("gap:0", 100.0, 103.0))
    wishes.changes(100.0)
    wishes.put(wish("gap:0", 100.0, 103.0, version="text/b/2.0.0"))

    told = wishes.changes(100.0)

    assert told is not None
    assert told.released == [("text/b/1.0.0", "gap:0")]
    assert [hold.version for hold in told.holds] == ["text/b/2.0.0"]


def test_what_is_released_is_told_and_what_passed_is_forgotten() -> None:
    wishes = Wishes(everything)
    wishes.put(wish("path:1", 100.0, 110.0))
    wishes.put(wish("gap:0", 100.0, 101.0))
    wishes.whole(100.0, [])
    wishes.release("text/b", "path:1")

    told = wishes.changes(100.5)

    assert told is not None
    assert told.released == [("text/b/1.0.0", "path:1")]
    assert wishes.whole(102.0, []).holds == []
    assert len(wishes) == 0


def test_many_wishes_for_one_version_become_few_that_cover_the_same_time() -> None:
    wishes = Wishes(everything)
    for number in range(1_000):
        wishes.put(wish(f"path:{number}", 100.0 + number * 0.001, 101.0 + number * 0.001, gain=number))
    wishes.put(wish("path:later", 110.0, 111.0))

    holds = {hold.key: hold for hold in wishes.whole(100.5, []).holds}

    assert len(holds) <= 6
    assert max(hold.until_ms for hold in holds.values() if hold.key != "path:later") == pytest.approx(1_499, abs=1)
    assert holds["path:later"].start_ms == 9_500 - LEAD_MS
    assert holds["path:999"].gain == 999  # the reason that counts most is told


def test_what_may_not_be_waits_until_it_may() -> None:
    allowed: set[str] = set()
    wishes = Wishes(lambda each: each.key in allowed)
    wishes.put(wish("path:1", 100.0, 110.0))
    assert wishes.changes(100.0) is None

    allowed.add("path:1")
    wishes.look_again(["text/b", "text/unknown"])

    told = wishes.changes(101.0)
    assert told is not None
    assert [hold.key for hold in told.holds] == ["path:1"]
    allowed.clear()
    assert wishes.whole(102.0, []).holds == []


def test_a_message_holds_no_more_than_fits_the_best_first() -> None:
    wishes = Wishes(everything)
    for number in range(5_000):
        wishes.put(wish("gap:0", 100.0, 110.0, gain=number, version=f"text/b{number}/1.0.0"))

    holds = wishes.whole(100.0, ["text/off/1.0.0"])

    assert len(holds.holds) == 4_000
    assert min(hold.gain for hold in holds.holds) == 1_000
    assert holds.is_whole
    assert holds.off == ["text/off/1.0.0"]


def test_it_remembers_what_a_key_meant_that_is_over() -> None:
    wishes = Wishes(everything)
    wishes.put(wish("path:1", 100.0, 110.0))
    wishes.changes(100.0)
    wishes.release("text/b", "path:1")
    wishes.changes(100.0)

    found = wishes.told("text/b/1.0.0", "path:1")

    assert found is not None
    assert found.reason == "because of path:1"


@pytest.mark.parametrize(
    ("told_until_s", "is_up", "is_urgent"),
    [(160.0, True, False), (160.0, False, True), (100.3, True, True)],
    ids=["held and up", "not up", "not held for long"],
)
def test_what_changes_of_a_version_that_is_held_and_up_can_wait(
    told_until_s: float, is_up: bool, is_urgent: bool
) -> None:
    wishes = Wishes(everything)
    wishes.put(wish("gap:0", 99.0, told_until_s))
    assert wishes.is_urgent(100.0, lambda _: is_up)  # nobody was told yet
    wishes.changes(100.0)
    wishes.put(wish("path:1", 99.0, 300.0))

    assert wishes.is_urgent(100.0, lambda _: is_up) == is_urgent


def test_one_version_that_cannot_wait_is_enough() -> None:
    wishes = Wishes(everything)
    wishes.put(wish("gap:0", 99.0, 160.0))
    wishes.changes(100.0)
    wishes.put(wish("path:1", 99.0, 300.0))
    assert not wishes.is_urgent(100.0, lambda _: True)
    wishes.put(wish("path:1", 101.0, 300.0, version="text/c/1.0.0"))

    assert wishes.is_urgent(100.0, lambda _: True)
