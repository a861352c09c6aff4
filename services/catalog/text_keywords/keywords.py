"""text/keywords finds the phrases that an English text is about, by RAKE (Rose, Engel, Cramer & Cowley, 2010).

What stands between stop words and punctuation is a candidate. A word scores the length of the candidates it is found
in, on average, and a candidate the sum of its words; so what returns in long phrases comes first. It needs no corpus
and no model, and its time grows linearly with the text. Text that is already lemmatized is taken as well.
"""

import re
from collections import Counter
from collections.abc import Iterator

import msgspec
from stop_words import STOP_WORDS

from algomesh import algorithm

MOST_KEYWORDS = 8
# Longer runs of words without a stop word are lists, not phrases.
_LONGEST_PHRASE = 4
_DIGITS = 3
_WORD_OR_BREAK = re.compile(r"[^\W_]+(?:['’&.+\-][^\W_]+)*(?:\+\+|#)?|[^\w\s]|\n", re.UNICODE)
_LINK = re.compile(r"https?://\S+|www\.\S+|@\w+", re.IGNORECASE)


class Keyword(msgspec.Struct, frozen=True, kw_only=True):
    """A phrase of the text, as it stands there first."""

    phrase: str
    score: float
    """At least 1, higher for what matters more; to be compared within one text only."""
    count: int
    """How often it is found, in whatever capitals."""


@algorithm("text/keywords", version="1.0.0")
def keywords(text: str) -> list[Keyword]:
    """Return the keywords of `text`, the best first; at most eight, none for a text without content."""
    phrases = list(candidates(text))
    keys = [tuple(word.lower() for word in phrase) for phrase in phrases]
    counts = Counter(keys)
    found: Counter[str] = Counter()
    company: Counter[str] = Counter()
    for key in keys:
        for word in key:
            found[word] += 1
            company[word] += len(key)
    # As ordered: of equal ones, the earlier is first.
    scores = {key: sum(company[word] / found[word] for word in key) for key in counts}
    shown = dict(zip(reversed(keys), reversed(phrases), strict=True))
    best = sorted(scores, key=lambda key: -scores[key] * counts[key])[:MOST_KEYWORDS]
    return [Keyword(phrase=" ".join(shown[key]), score=round(scores[key], _DIGITS), count=counts[key]) for key in best]


def candidates(text: str) -> Iterator[list[str]]:
    """Yield what stands between stop words and punctuation, word by word."""
    phrase: list[str] = []
    for token in _WORD_OR_BREAK.findall(_LINK.sub("\n", text)):
        if is_content(token):
            if not phrase or phrase[-1].lower() != token.lower():  # "love love love" is one love
                phrase.append(token)
            continue
        yield from _cut(phrase)
        phrase = []
    yield from _cut(phrase)


def is_content(token: str) -> bool:
    """Whether a token can be part of a keyword: a word that is no stop word and has more than one letter."""
    word = token.lower().replace("’", "'")
    if len(word) < 2 or not any(map(str.isalpha, word)):
        return False
    return word not in STOP_WORDS and word.partition("'")[0] not in STOP_WORDS


def _cut(phrase: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(phrase), _LONGEST_PHRASE):
        yield phrase[start : start + _LONGEST_PHRASE]
