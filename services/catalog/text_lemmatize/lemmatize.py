"""text/lemmatize replaces the words of an English text by their lemmas and keeps everything else.

Text in, text out: the lemmas stand where their words stood, so that whatever reads text can follow in a pipeline.
Kept as they are: emoticons, emoji, punctuation and spacing; words with an apostrophe or a sign in them ("don't",
"@ann", "3rd"); capitals as emphasis (LOVED becomes LOVE); and degrees of comparison, because "worst" and "bad"
do not mean the same to those who measure sentiment.
"""

import re

from simplemma import Lemmatizer

from algomesh import algorithm

# Letters only, and no neighbours that make the letters part of a link, a name, a number or an emoticon.
_WORD = re.compile(r"(?<![\w'@#&/:.\-])[^\W\d_]{2,}(?![\w'@/_\-]|[:.]\w)")
_ACRONYM_LENGTH = 3
_COMPARED_GOOD_AND_BAD = frozenset({"best", "better", "worse", "worst"})
_COMPARED_MUCH_AND_LITTLE = frozenset({"least", "less", "more", "most"})
_PRONOUNS = frozenset({"her", "him", "me", "them", "us"})
_OF_TWO_MEANINGS = frozenset({"ai", "am", "cal", "cf"})
_KEPT = _COMPARED_GOOD_AND_BAD | _COMPARED_MUCH_AND_LITTLE | _PRONOUNS | _OF_TWO_MEANINGS
# Where the dictionary prefers a rare word: gone is a form of "gan" too.
_CORRECTED = {
    "cancelled": "cancel",
    "cancelling": "cancel",
    "fixed": "fix",
    "fixes": "fix",
    "gone": "go",
    "mixed": "mix",
    "mixes": "mix",
}


@algorithm("text/lemmatize", version="1.0.0")
class Lemmatize:
    """Lemmatizes English text with simplemma, whose dictionary comes inside its package."""

    def load(self) -> None:
        """Read the dictionary now, and not when the first word is looked up."""
        self._lemmatizer = Lemmatizer()
        self._lemmatizer.lemmatize("loaded", lang="en")

    def apply(self, text: str) -> str:
        """Return `text` with its words lemmatized."""
        return _WORD.sub(lambda word: self._lemma(word[0]), text)

    def _lemma(self, word: str) -> str:
        lower = word.lower()
        if lower in _KEPT or (word.isupper() and len(word) <= _ACRONYM_LENGTH):
            return word
        lemma = _CORRECTED.get(lower) or self._lemmatizer.lemmatize(lower, lang="en")
        # A name or an abbreviation (omg: OMG) is no lemma here: its capitals would read as emphasis.
        if not lemma.islower() or is_comparison(lower, lemma):
            return word
        return with_case_of(word, lemma)


def is_comparison(word: str, lemma: str) -> bool:
    """Return whether `word` compares (happier, saddest) what `lemma` states."""
    return word != lemma and word.endswith(("er", "est")) and not lemma.endswith(("er", "est"))


def with_case_of(word: str, lemma: str) -> str:
    """Return `lemma` in the case of `word`: SHOUTED, Capitalized or plain."""
    if word.isupper():
        return lemma.upper()
    return lemma[:1].upper() + lemma[1:] if word[:1].isupper() else lemma
