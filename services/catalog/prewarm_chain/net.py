"""The network that all services of this project run: a picture goes in, a picture of the same size comes out."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

CHANNELS = (3, 32, 32, 32, 3)
WEIGHTS = Path(__file__).with_name("weights.safetensors")


class Net:
    """Four convolutions beside the picture itself. `make_weights.py` draws the weights."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight.float() for name, weight in weights.items()}

    @classmethod
    def load(cls) -> "Net":
        """Read the weights, stored in half precision, onto the GPU that the mesh gave, or onto the CPU."""
        return cls(load_file(WEIGHTS, device="cuda" if torch.cuda.is_available() else "cpu"))

    @torch.inference_mode()
    def __call__(self, picture: Tensor) -> Tensor:
        """Run on one picture, (3, height, width)."""
        before = picture[None].to(self._weights["0.weight"].device)
        states = before
        for layer in range(len(CHANNELS) - 1):
            weight, bias = self._weights[f"{layer}.weight"], self._weights[f"{layer}.bias"]
            states = functional.conv2d(states if layer == 0 else functional.gelu(states), weight, bias, padding=1)
        return (before + 0.1 * torch.tanh(states)).clamp(0.0, 1.0)[0].cpu()
