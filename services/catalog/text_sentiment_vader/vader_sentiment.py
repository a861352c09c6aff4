"""text/sentiment 1.0.0 scores a short text with VADER's lexicon and rules (Hutto & Gilbert, ICWSM 2014).

It was made for posts: it reads capitals, exclamation marks, emoticons and negations, so pass it text that still has
them. Version 2.0.0 answers in the same shape.
"""

from typing import Literal, TypedDict

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from algomesh import algorithm

Label = Literal["negative", "neutral", "positive"]
# The thresholds of VADER's authors.
_NEUTRAL = 0.05
# VADER compares every word with every other: a post has a hundred words, and a book would take hours.
_MAX_CHARACTERS = 16_384


class Sentiment(TypedDict):
    """What is felt in a text, and how much."""

    score: float
    """From -1 (most negative) to 1 (most positive)."""
    label: Label


@algorithm("text/sentiment", version="1.0.0")
class VaderSentiment:
    """Sentiment by lexicon and rules: no model, no training, the same answer on every machine."""

    def load(self) -> None:
        """Read the lexicon."""
        self._analyzer = SentimentIntensityAnalyzer()

    def apply(self, text: str) -> Sentiment:
        """Score `text`; what has nothing to read in it is neutral."""
        score = float(self._analyzer.polarity_scores(text[:_MAX_CHARACTERS])["compound"])
        return {"score": score, "label": label(score)}


def label(score: float) -> Label:
    """Name the side of neutral on which `score` lies."""
    if abs(score) < _NEUTRAL:
        return "neutral"
    return "positive" if score > 0 else "negative"
