"""The small head: from what the encoder saw of a text to the rating that people would give it.

One hidden layer over the mean hidden state of every encoder layer. The last layer alone, which is what a sentence
embedding is made of, knows the topic of a text better than its mood (docs/adr/0006-sentiment-head.md).
`train.py` fits it and writes `head.safetensors`; nothing here knows about training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from minilm_encoder import LAYERS, WIDTH
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

FEATURES = (LAYERS + 1) * WIDTH
HEAD_FILE = Path(__file__).with_name("head.safetensors")
HIGHEST_RATING = 4.0  # people rated from -4 to 4


class Head:
    """Weights of the head: `hidden.weight`, `hidden.bias`, `out.weight`, `out.bias`."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight.float() for name, weight in weights.items()}

    @classmethod
    def load(cls, device: str, path: Path = HEAD_FILE) -> Self:
        """Read the weights, stored in half precision, onto `device`."""
        return cls(load_file(path, device=device))

    def scores(self, means: Tensor) -> Tensor:
        """Return a score from -1 to 1 for each text; `means` is what `Encoded.means` gives."""
        weights = self._weights
        hidden = functional.linear(means.flatten(1), weights["hidden.weight"], weights["hidden.bias"])
        ratings = functional.linear(functional.gelu(hidden), weights["out.weight"], weights["out.bias"])
        return (ratings.squeeze(1) / HIGHEST_RATING).clamp(-1.0, 1.0)
