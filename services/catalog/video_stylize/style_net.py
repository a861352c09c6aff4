"""The network of video/stylize: picture in, painting out, as functions over a dictionary of tensors.

Two strided convolutions, three residual blocks and two upsamplings (Johnson, Alahi & Fei-Fei, 2016) with instance
normalization throughout (Ulyanov, Vedaldi & Lempitsky, 2016): every frame is normalized by itself, so that it looks
the same in any batch. Two channels of noise go in with the picture, without which the network, being the same at every
place, could not put strokes onto a plain surface; the noise is fixed, so that the strokes of a still scene keep still.
There is no `nn.Module`: the weights are read straight from the file, see ADR 0006.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

WEIGHTS_FILE = Path(__file__).with_name("style.safetensors")
BLOCKS = 3
# Channels in and out and the kernel's size, for each convolution by name.
CONVOLUTIONS = {
    "enter": (5, 12, 5),
    "down1": (12, 24, 3),
    "down2": (24, 48, 3),
    **{f"block{block}.{half}": (48, 48, 3) for block in range(BLOCKS) for half in ("first", "second")},
    "up1": (48, 24, 3),
    "up2": (24, 12, 3),
    "leave": (12, 3, 5),
}
# The picture is halved twice on its way in.
_SHRINK = 4
_SMALLEST = 16
_NOISE_SEED = 3


def load_weights(device: str, path: Path = WEIGHTS_FILE) -> dict[str, Tensor]:
    """Read the weights, stored in half precision, onto `device` as float32."""
    return {name: weight.float() for name, weight in load_file(path, device=device).items()}


def new_weights(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights to begin a training with."""
    weights: dict[str, Tensor] = {}
    for name, (inputs, outputs, size) in CONVOLUTIONS.items():
        spread = (2.0 / (inputs * size * size)) ** 0.5
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, size, size, generator=generator) * spread
        if name == "leave":
            weights["leave.bias"] = torch.zeros(outputs)
        else:
            weights[f"{name}.gain"] = torch.ones(outputs)
            weights[f"{name}.shift"] = torch.zeros(outputs)
    return weights


def paint(weights: Mapping[str, Tensor], pictures: Tensor) -> Tensor:
    """Paint `pictures`, (n, 3, height, width) from 0 to 1, and return as many of the same size.

    Any size is taken: what four does not divide, or is smaller than the kernels, is padded at its borders.
    """
    height, width = pictures.shape[-2:]
    padded = functional.pad(pictures, (0, _padding(width), 0, _padding(height)), mode="replicate")
    x = torch.cat([padded - 0.5, _noise(padded)], dim=1)
    x = functional.relu(_normalized(weights, "enter", x))
    x = functional.relu(_normalized(weights, "down1", x, stride=2))
    x = functional.relu(_normalized(weights, "down2", x, stride=2))
    for block in range(BLOCKS):
        inner = functional.relu(_normalized(weights, f"block{block}.first", x))
        x = x + _normalized(weights, f"block{block}.second", inner)
    x = functional.relu(_normalized(weights, "up1", _doubled(x)))
    x = functional.relu(_normalized(weights, "up2", _doubled(x)))
    painted = torch.sigmoid(_convolved(weights, "leave", x))
    return painted[..., :height, :width]


def _noise(pictures: Tensor) -> Tensor:
    """Fine and coarse noise, the same for every picture of a size."""
    n, _, height, width = pictures.shape
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    fine = torch.randn(1, 1, height, width, generator=generator)
    coarse = torch.randn(1, 1, height // _SHRINK, width // _SHRINK, generator=generator)
    coarse = functional.interpolate(coarse, scale_factor=_SHRINK, mode="bilinear")
    return torch.cat([fine, coarse], dim=1).mul(0.25).to(pictures.device).expand(n, -1, -1, -1)


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear")


def _padding(size: int) -> int:
    return max(-size % _SHRINK, _SMALLEST - size)


def _normalized(weights: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A convolution, each channel of each picture brought to mean 0 and variance 1, then to its gain and shift."""
    x = _convolved(weights, name, x, stride)
    return functional.instance_norm(x, weight=weights[f"{name}.gain"], bias=weights[f"{name}.shift"])


def _convolved(weights: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    margin = CONVOLUTIONS[name][2] // 2
    x = functional.pad(x, (margin,) * 4, mode="reflect")
    return functional.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), stride=stride)
