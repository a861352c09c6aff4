"""text/lemmatize: how a lemma takes the place of its word."""

import pytest

from tests.catalog import load

lemmatizing = load("lemmatize", "text_lemmatize")


@pytest.mark.parametrize(
    ("word", "lemma", "expected"),
    [("LOVED", "love", "LOVE"), ("Cats", "cat", "Cat"), ("cats", "cat", "cat")],
)
def test_a_lemma_takes_the_case_of_its_word(word: str, lemma: str, expected: str) -> None:
    assert lemmatizing.with_case_of(word, lemma) == expected


@pytest.mark.parametrize(
    ("word", "lemma", "expected"),
    [("happier", "happy", True), ("saddest", "sad", True), ("cleaner", "cleaner", False), ("running", "run", False)],
)
def test_a_comparison_is_told_from_its_lemma(word: str, lemma: str, expected: bool) -> None:
    assert lemmatizing.is_comparison(word, lemma) is expected
