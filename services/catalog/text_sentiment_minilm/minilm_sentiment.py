"""text/sentiment 2.0.0 scores a short text by MiniLM embeddings and a small head trained on people's ratings.

It reads whole sentences where version 1.0.0 reads words, takes a hundred times longer, and answers in the same
shape. Texts of any length are taken; the first 256 tokens are read.
"""

import logging
from typing import Literal, TypedDict

import torch
from minilm_encoder import Encoder
from minilm_head import Head

from algomesh import Batch, algorithm

_log = logging.getLogger(__name__)

Label = Literal["negative", "neutral", "positive"]
# On the raters' scale from -4 to 4 this is less than half a point.
_NEUTRAL = 0.1
_DIGITS = 4


class Sentiment(TypedDict):
    """What is felt in a text, and how much."""

    score: float
    """From -1 (most negative) to 1 (most positive)."""
    label: Label


@algorithm("text/sentiment", version="2.0.0", gpu=0.25, memory="2Gi", preload=["torch"], batch=Batch(max=32, wait_ms=4))
class MiniLmSentiment:
    """Sentiment by a sentence encoder and a small trained head."""

    def load(self) -> None:
        """Map the weights onto the GPU that the mesh gave, or onto the CPU where there is none."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            _log.warning("no GPU here: text/sentiment 2.0.0 runs on the CPU")
        self._encoder = Encoder.load(torch.device(device))
        self._head = Head.load(device)

    def apply(self, texts: list[str]) -> list[Sentiment]:
        """Score `texts`, of different callers, in one pass of the model; one with nothing to read in it is neutral."""
        read = [index for index, text in enumerate(texts) if text.strip()]
        scores = [0.0] * len(texts)
        if read:
            means = self._encoder.encode([texts[index] for index in read]).means()
            for index, score in zip(read, self._head.scores(means).tolist(), strict=True):
                scores[index] = round(score, _DIGITS)
        return [{"score": score, "label": label(score)} for score in scores]


def label(score: float) -> Label:
    """Name the side of neutral on which `score` lies."""
    if abs(score) < _NEUTRAL:
        return "neutral"
    return "positive" if score > 0 else "negative"
