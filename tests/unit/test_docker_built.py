"""Which of the images that were built for versions go, and which stay."""

from algomesh_services.launcher.docker_built import Image, Retention, surplus

RETENTION = Retention(most=2, unused_s=100.0, unpublished_s=10.0)
NOW = 1000.0


def image(tag: str, used_s_ago: float, unpublished_s_ago: float | None = None) -> Image:
    at = None if unpublished_s_ago is None else NOW - unpublished_s_ago
    return Image(tag, frozenset({"d"}), NOW - used_s_ago, at)


def test_those_that_were_used_last_stay_however_long_ago_that_was() -> None:
    assert surplus([image("a", 500), image("b", 600)], RETENTION, NOW) == {}


def test_beyond_them_those_go_that_were_not_used_for_long() -> None:
    images = [image("c", 300), image("a", 1), image("d", 99), image("b", 2), image("e", 200)]

    assert surplus(images, RETENTION, NOW).keys() == {"c", "e"}


def test_what_is_used_all_the_time_stays_however_many_they_are() -> None:
    assert surplus([image(f"{number}", number) for number in range(90)], RETENTION, NOW) == {}


def test_what_no_version_needs_goes_though_there_is_place() -> None:
    assert surplus([image("a", 20, 20), image("b", 30)], RETENTION, NOW) == {
        "a": "none of its versions is published any more"
    }


def test_what_was_used_or_published_a_moment_ago_stays() -> None:
    assert surplus([image("a", 5, 20), image("b", 20, 5)], RETENTION, NOW) == {}


def test_those_that_go_as_unpublished_take_no_place() -> None:
    assert surplus([image("a", 300), image("b", 200, 50), image("c", 250)], RETENTION, NOW).keys() == {"b"}
