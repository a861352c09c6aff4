"""Routes: what is a path from the head to the end, and who acts where on it."""

import pytest

from algomesh_broker.errors import BadMessage
from algomesh_broker.names import VersionId
from algomesh_broker.route import END, HEAD, MOST_STEPS, AllStep, CallStep, EachStep, Route, Step

CLEAN, SENTIMENT, TOPICS, MERGE = (f"text/{name}/1.0.0" for name in ("clean", "sentiment", "topics", "merge"))


def picture() -> list[Step]:
    """clean | (sentiment & topics) | merge."""
    return [CallStep(CLEAN, 1), AllStep([2, 3], 4), CallStep(SENTIMENT), CallStep(TOPICS), CallStep(MERGE)]


def test_a_route_is_the_same_at_its_other_end() -> None:
    route = Route(picture())

    again = Route.decode(route.data)

    assert again.steps == route.steps
    assert again.data == route.data


def test_every_step_knows_who_hands_over_to_it_and_who_waits_for_it() -> None:
    places = Route(picture()).places

    assert {at: (place.forwarder, place.joiner, place.next) for at, place in places.items()} == {
        0: (HEAD, HEAD, 1),
        2: (0, 0, END),
        3: (0, 0, END),
        4: (0, HEAD, END),
    }


def test_branches_at_the_head_are_joined_by_the_head() -> None:
    places = Route([AllStep([1, 2], 3), CallStep(SENTIMENT), CallStep(TOPICS), CallStep(MERGE)]).places

    assert [(places[at].forwarder, places[at].joiner) for at in (1, 2, 3)] == [(HEAD, HEAD)] * 3


def test_a_chain_within_a_branch_is_handed_over_along_it_and_joined_before_it() -> None:
    places = Route([CallStep(CLEAN, 1), EachStep(2), CallStep(SENTIMENT, 3), CallStep(TOPICS)]).places

    assert (places[2].forwarder, places[2].joiner) == (0, 0)
    assert (places[3].forwarder, places[3].joiner) == (2, 0)


def test_callers_are_named_by_the_version_that_acts() -> None:
    route = Route(picture())

    assert route.caller_of(0, "k~me") == "text~clean"
    assert route.caller_of(HEAD, "k~me") == "k~me"


def test_each_version_is_named_once() -> None:
    route = Route([CallStep(CLEAN, 1), CallStep(TOPICS, 2), CallStep(CLEAN)])

    assert route.versions == [VersionId.parse(CLEAN), VersionId.parse(TOPICS)]


BAD: dict[str, list[Step]] = {
    "nothing": [],
    "a loop of one": [CallStep(CLEAN, 0)],
    "a loop of two": [CallStep(CLEAN, 1), CallStep(TOPICS, 0)],
    "a branch that comes back": [CallStep(CLEAN, 1), AllStep([2], END), CallStep(TOPICS, 0)],
    "an each around itself": [EachStep(0)],
    "a fan-out around itself": [AllStep([0])],
    "a fan-out after itself": [AllStep([1], 0), CallStep(CLEAN)],
    "two branches that meet": [AllStep([1, 2]), CallStep(CLEAN, 3), CallStep(TOPICS, 3), CallStep(MERGE)],
    "one branch twice": [AllStep([1, 1]), CallStep(CLEAN)],
    "a step beyond the end": [CallStep(CLEAN, 7)],
    "a step before the beginning": [CallStep(CLEAN, -2)],
    "a branch beyond the end": [AllStep([1, 9]), CallStep(CLEAN)],
    "a branch of nothing": [AllStep([END, 1]), CallStep(CLEAN)],
    "an each of nothing": [EachStep(END)],
    "no branches": [AllStep([])],
    "fewer names than branches": [AllStep([1, 2], names=["a"]), CallStep(CLEAN), CallStep(TOPICS)],
    "one name twice": [AllStep([1, 2], names=["a", "a"]), CallStep(CLEAN), CallStep(TOPICS)],
    "a call that nothing leads to": [CallStep(CLEAN), CallStep(TOPICS)],
    "a fan-out that nothing leads to": [CallStep(CLEAN), AllStep([0])],
    "no version": [CallStep("text/clean")],
    "half a version": [CallStep("text/clean/1.2")],
    "a subject for a version": [CallStep("text/clean/>")],
    "too many at once": [EachStep(1, in_flight=0), CallStep(CLEAN)],
    "no time": [CallStep(CLEAN, timeout_s=0.0)],
    "a time that is no number": [CallStep(CLEAN, timeout_s=float("nan"))],
    "no attempt": [CallStep(CLEAN, attempts=0)],
    "attempts without end": [CallStep(CLEAN, attempts=10**9)],
    "a cache of the past": [CallStep(CLEAN, cache_s=-1.0)],
    "too deep": [*(EachStep(at + 1) for at in range(100)), CallStep(CLEAN)],
    "too long": [*(CallStep(CLEAN, at + 1) for at in range(MOST_STEPS)), CallStep(CLEAN)],
}


@pytest.mark.parametrize("steps", BAD.values(), ids=BAD.keys())
def test_what_is_no_path_is_refused(steps: list[Step]) -> None:
    with pytest.raises(BadMessage):
        Route(steps)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\xa5route\x90", b"\x91" * 5_000, b"\x92\xa5route\xc0", b"{}"])
def test_foreign_bytes_are_no_route(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Route.decode(data)


def test_the_longest_route_can_be_read() -> None:
    last = MOST_STEPS - 1
    steps: list[Step] = [CallStep(f"text/n{at}/1.0.0", at + 1 if at < last else END) for at in range(MOST_STEPS)]

    route = Route.decode(Route(steps).data)

    assert len(route.places) == len(route.versions) == MOST_STEPS


def test_what_comes_after_a_step_is_told_nearest_first_joins_and_what_follows_them_included() -> None:
    # clean | (sentiment | tone & topics) | merge | report
    route = Route([
        CallStep("t/clean/1.0.0", 1), AllStep([2, 4], 5), CallStep("t/sentiment/1.0.0", 3), CallStep("t/tone/1.0.0"),
        CallStep("t/topics/1.0.0"), CallStep("t/merge/1.0.0", 6), CallStep("t/report/1.0.0"),
    ])  # fmt: skip
    names = [[version.split("/")[1] for version in route.after(at)] for at in range(7)]

    assert names[0] == ["sentiment", "tone", "topics", "merge", "report"]
    assert names[2] == ["tone", "merge", "report"]
    assert names[3] == names[4] == ["merge", "report"]
    assert names[6] == []
