"""text/language with its real model."""

from typing import Any

import pytest

from tests.catalog import CATALOG, load

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def identify() -> Any:
    pytest.importorskip("py3langid", reason="needs py3langid of the extra `catalog`")
    return load("language", "text_language").IdentifyLanguage


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I can't believe how good this is", "en"),
        ("Guten Morgen zusammen, wie geht es euch?", "de"),
        ("bonjour tout le monde", "fr"),
        ("¿cómo estás, amigo? te echo de menos", "es"),
        ("che bello vederti oggi", "it"),
        ("这个很好吃，我很高兴", "zh"),
        ("これは日本語です", "ja"),
        ("мне очень понравилось", "ru"),
        ("Bu kitabı çok sevdim", "tr"),
    ],
)
def test_a_sentence_is_enough(identify: Any, text: str, language: str) -> None:
    found = identify(text)

    assert found.language == language
    assert 0.2 <= found.confidence <= 1


@pytest.mark.parametrize("text", ["", " \n ", "12:30 !!! 🙂", "xqzv", "\ud83d", "\x00", "a"])
def test_what_cannot_be_told_is_said_to_be_undetermined(identify: Any, text: str) -> None:
    found = identify(text)

    assert found.language == "und"
    assert 0 <= found.confidence < 0.2


def test_nearly_all_of_our_posts_are_english(identify: Any) -> None:
    posts = (CATALOG / "sample_posts.txt").read_text(encoding="utf-8").splitlines()

    found = [identify(post).language for post in posts]

    assert found.count("en") >= 0.9 * len(posts)


def test_a_long_text_takes_no_longer_than_its_first_pages(identify: Any) -> None:
    assert identify("this is the house that Jack built " * 200_000).language == "en"
