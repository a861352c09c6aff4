"""How far a picture is from the painting's manner, and how much of another picture is left in it.

Gatys, Ecker & Bethge (2016) measure both with a network trained to recognize things. No such weights come with this
project; the features here are fixed and untrained, which carries a style too (Ustyuzhaninov et al., 2016; He, Wang &
Hopcroft, 2016): at four scales, Gabor filters on three opponent colours, rectified, and on those a random orthogonal
convolution, rectified again. ADR 0010 says what that is worth.

- *style*: the distance between the Gram matrices of two pictures' features, in parts of the painting's own, averaged
  over layers and scales. 0 is the painting itself. It does not ask where something is.
- *content*: the squared difference between the oriented energies and the coarse brightness of two pictures, each
  brought to mean 0 and variance 1. 0 is the same picture, 2 are two that have nothing to do with each other. It
  does not ask for the colour.

Pictures have at least 48 pixels a side.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SCALES = 4
ORIENTATIONS = 6
RANDOM_FILTERS = 48
SEED = 11
_GABOR = 7
_WAVELENGTH = 4.5
# Content is looked for at half the resolution and below: above it, the strokes are free.
_FINEST_CONTENT = 2
# Rows: brightness, red against green, blue against yellow.
_OPPONENT = torch.tensor([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]])

Grams = dict[str, Tensor]


class Measured(NamedTuple):
    """Content and style loss of each picture, (n,)."""

    content: Tensor
    style: Tensor


class Critic:
    """Knows the painting, and measures pictures against it."""

    def __init__(self, painting: Tensor, device: str = "cpu") -> None:
        """`painting` is (3, height, width) from 0 to 1."""
        self._gabor = _gabor_filters().to(device)
        self._opponent = _OPPONENT.to(device)
        self._random = _random_filters().to(device)
        shown = painting[None].to(device)
        self._levels: dict[str, tuple[Tensor, Tensor]] = {}
        self._levels = {
            name: (x.mean(dim=(0, 2, 3), keepdim=True), x.std(dim=(0, 2, 3), keepdim=True) + 1e-6)
            for name, x in self.features(shown).items()
        }
        self.painting = self.grams(shown)

    def features(self, pictures: Tensor) -> dict[str, Tensor]:
        """What the style is read from: (n, channels, height, width) by layer.

        Each channel is counted from its mean in the painting and in parts of its spread there: the Gram matrix of
        what is never negative would tell little but that (Novak & Nikulin, 2016).
        """
        found: dict[str, Tensor] = {}
        opponent = self.opponent(pictures)
        for scale in range(SCALES):
            edges = self._edges(opponent)
            rectified = functional.relu(torch.cat([edges, -edges], dim=1))
            found[f"edges{scale}"] = torch.cat([opponent, rectified], dim=1)
            mixed = functional.conv2d(functional.avg_pool2d(rectified, 2), self._random)
            found[f"mixed{scale}"] = functional.relu(mixed)
            opponent = functional.avg_pool2d(opponent, 2)
        for name, (mean, spread) in self._levels.items():
            found[name] = (found[name] - mean) / spread
        return found

    def grams(self, pictures: Tensor) -> Grams:
        """The Gram matrices of the features, (n, channels, channels) by layer."""
        grams = {}
        for name, features in self.features(pictures).items():
            flat = features.flatten(2)
            grams[name] = flat @ flat.transpose(1, 2) / flat.shape[-1]
        return grams

    def style(self, pictures: Tensor) -> Tensor:
        """The style loss of each picture, (n,)."""
        return distance(self.grams(pictures), self.painting)

    def content(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """The content loss of each picture against its original, (n,)."""
        losses = [
            (_standardized(mine) - _standardized(theirs)).square().flatten(1).mean(dim=1)
            for mine, theirs in zip(self._structure(pictures), self._structure(originals), strict=True)
        ]
        return torch.stack(losses).mean(dim=0)

    def measure(self, pictures: Tensor, originals: Tensor) -> Measured:
        """Both losses, without gradients."""
        with torch.inference_mode():
            return Measured(self.content(pictures, originals), self.style(pictures))

    def opponent(self, pictures: Tensor) -> Tensor:
        """Brightness, red against green, blue against yellow; from -0.5 to 0.5."""
        return torch.einsum("oc,nchw->nohw", self._opponent, pictures - 0.5)

    def _edges(self, opponent: Tensor) -> Tensor:
        n, channels, height, width = opponent.shape
        margin = _GABOR // 2
        flat = functional.pad(opponent.reshape(n * channels, 1, height, width), (margin,) * 4, mode="reflect")
        return functional.conv2d(flat, self._gabor).reshape(n, -1, height, width)

    def _structure(self, pictures: Tensor) -> list[Tensor]:
        brightness = functional.avg_pool2d(self.opponent(pictures)[:, :1], _FINEST_CONTENT)
        found = [functional.avg_pool2d(brightness, 2)]
        for _ in range(2):
            even, odd = self._edges(brightness).chunk(2, dim=1)
            found.append((even.square() + odd.square() + 1e-8).sqrt())
            brightness = functional.avg_pool2d(brightness, 2)
        return found


def distance(grams: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """The relative distance of Gram matrices, averaged over the layers, (n,)."""
    losses = [
        (grams[name] - wanted[name]).square().sum(dim=(1, 2)) / wanted[name].square().sum(dim=(1, 2)) for name in wanted
    ]
    return torch.stack(losses).mean(dim=0)


def recoloured(pictures: Tensor, painting: Tensor) -> Tensor:
    """The best that a colour filter could do: pictures with the mean and the covariance of the painting's colours."""
    mean, root, _ = _colours(painting[None])
    means, _, roots = _colours(pictures)
    flat = pictures.flatten(2) - means
    return (root @ roots @ flat + mean).reshape(pictures.shape).clamp(0, 1)


def _colours(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, square root of the covariance, and the inverse of that root, of each picture."""
    flat = pictures.flatten(2)
    mean = flat.mean(dim=2, keepdim=True)
    covariance = (flat - mean) @ (flat - mean).transpose(1, 2) / flat.shape[2]
    values, vectors = torch.linalg.eigh(covariance + 1e-5 * torch.eye(3))
    roots = values.clamp_min(1e-6).sqrt()
    return (
        mean,
        vectors @ torch.diag_embed(roots) @ vectors.transpose(1, 2),
        vectors @ torch.diag_embed(1 / roots) @ vectors.transpose(1, 2),
    )


def _standardized(x: Tensor) -> Tensor:
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    spread = x.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) * (spread + 1e-6).rsqrt()


def _gabor_filters() -> Tensor:
    """Even and odd waves under a bell in each orientation, (2 × ORIENTATIONS, 1, size, size), mean 0, norm 1."""
    place = torch.arange(_GABOR) - _GABOR // 2
    down, right = torch.meshgrid(place.float(), place.float(), indexing="ij")
    bell = torch.exp(-(down.square() + right.square()) / (2 * (_GABOR / 4) ** 2))
    waves = []
    for wave in (torch.cos, torch.sin):
        for number in range(ORIENTATIONS):
            angle = math.pi * number / ORIENTATIONS
            phase = (right * math.cos(angle) + down * math.sin(angle)) * (2 * math.pi / _WAVELENGTH)
            filter_ = bell * wave(phase)
            filter_ = filter_ - bell * filter_.sum() / bell.sum()
            waves.append(filter_ / filter_.norm())
    return torch.stack(waves)[:, None]


def _random_filters() -> Tensor:
    """3 × 3 filters over the rectified edges whose rows are orthogonal, from a fixed seed."""
    inputs = 3 * 2 * 2 * ORIENTATIONS
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(inputs * 9, RANDOM_FILTERS, generator=generator)
    orthogonal, _ = torch.linalg.qr(rows)
    return orthogonal.T.reshape(RANDOM_FILTERS, inputs, 3, 3)
