"""text/clean: what goes, and what must stay for those who read sentiment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.catalog import CATALOG, load

cleaning = load("clean", "text_clean")


@pytest.mark.parametrize(
    ("post", "expected"),
    [
        ("Tom &amp; Ann &lt;3 &#39;s", "Tom & Ann <3 's"),
        ("escaped twice &amp;lt;3 &amp;amp; kept", "escaped twice <3 & kept"),
        ("see https://example.org/a?b=c#d now", "see now"),
        ("wow www.example.com!!!", "wow !!!"),
        ("notes (HTTP://EXAMPLE.ORG/x) here", "notes here"),
        ("@ann: thanks @bob_2, really", "thanks , really"),
        ("RT @ann: so good", "so good"),
        ("write to ann@example.org", "write to ann@example.org"),
        ("#BestDayEver #so_good #1 fan, C# too", "Best Day Ever so good #1 fan, C# too"),
        ("a\x00b\u200bc\ufeff d\r\n\te", "a bc d e"),
        ("<b>bold</b><br/>and <a href='x'>link</a>", "bold and link"),
        ("don’t “quote” me…", 'don\'t "quote" me...'),
        ("Iâ€™m hereâ€¦ in EspaÃ±a", "I'm here... in España"),
        ("España, naïve, Ångström", "España, naïve, Ångström"),
        ("   \n\t ", ""),
        ("", ""),
        ("a lone \ud83d surrogate", "a lone surrogate"),
    ],
)
def test_noise_goes(post: str, expected: str) -> None:
    assert cleaning.clean(post) == expected


@pytest.mark.parametrize(
    "post",
    [
        "NOT good!!! :(",
        "I <3 this, you don't? >:( :D ;-) :-/ xD",
        "sooooo happy ❤️ 👩‍👩‍👧 🎉",
        "never. ever. isn't it GREAT?!?!",
        "3 < 4 > 2 and a<b",
    ],
)
def test_what_carries_sentiment_stays(post: str) -> None:
    assert cleaning.clean(post) == post


@given(st.text(max_size=200))
def test_any_text_becomes_one_readable_line(text: str) -> None:
    line = cleaning.clean(text)

    assert line == " ".join(line.split())
    line.encode()


def test_the_sample_posts_keep_no_entity_link_or_mention() -> None:
    posts = (CATALOG / "sample_posts.txt").read_text(encoding="utf-8").splitlines()

    cleaned = [cleaning.clean(post) for post in posts]

    assert len(posts) == 40
    assert all(cleaned)
    assert not [line for line in cleaned if "&amp;" in line or "http" in line or "@" in line or "â" in line]
