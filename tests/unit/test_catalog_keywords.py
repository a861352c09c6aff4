"""text/keywords: phrases between stop words, the weightiest first."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.catalog import load

keyworder = load("keywords", "text_keywords")

# From the paper on RAKE (Rose, Engel, Cramer & Cowley, 2010): an abstract and what is found in it.
ABSTRACT = """\
Compatibility of systems of linear constraints over the set of natural numbers. Criteria of compatibility of a system
of linear Diophantine equations, strict inequations, and nonstrict inequations are considered. Upper bounds for
components of a minimal set of solutions and algorithms of construction of minimal generating sets of solutions for all
types of systems are given."""


def phrases(text: str) -> list[str]:
    return [keyword.phrase for keyword in keyworder.keywords(text)]


def test_long_phrases_of_words_in_good_company_come_first() -> None:
    found = phrases(ABSTRACT)

    assert set(found[:2]) == {"minimal generating sets", "linear Diophantine equations"}
    assert "linear constraints" in found
    assert "natural numbers" in found


def test_a_keyword_stands_as_it_was_written_first_and_counts_in_any_capitals() -> None:
    [keyword] = keyworder.keywords("Solar Power, and solar power; SOLAR POWER!")

    assert (keyword.phrase, keyword.count) == ("Solar Power", 3)
    assert keyword.score == 4.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I love love LOVE it", ["love"]),
        ("you don't know what you’ve done", []),
        ("see https://example.org/good_food and @friendly_ann about wine", ["wine"]),
        ("C++ and AT&T, R2-D2 and rock'n'roll", ["C++", "AT&T", "R2-D2", "rock'n'roll"]),
        ("42 3.14 :) !!! \n", []),
        ("", []),
    ],
)
def test_what_is_no_subject_is_no_keyword(text: str, expected: list[str]) -> None:
    assert phrases(text) == expected


def test_there_are_at_most_eight_and_none_is_long() -> None:
    found = phrases(" and ".join(f"alpha{i} beta gamma delta epsilon{i} zeta" for i in range(50)))

    assert len(found) == 8
    assert max(len(phrase.split()) for phrase in found) <= 4


@given(st.text(max_size=300))
def test_any_text_has_keywords_or_none(text: str) -> None:
    for keyword in keyworder.keywords(text):
        assert keyword.score >= 1
        assert keyword.count >= 1
        assert keyword.phrase


def test_the_time_grows_with_the_length_only() -> None:
    began = time.perf_counter()

    keyworder.keywords("word thing of " * 20_000)

    assert time.perf_counter() - began < 5
