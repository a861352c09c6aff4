"""Pictures to train video/stylize on, made by arithmetic: no foreign photograph is needed.

Half of them are dead leaves: discs, bars and polygons of all sizes that lie over each other, shaded and grained,
whose edges and contrasts are distributed as in photographs (Lee, Mumford & Huang, 2001). A quarter are clouds with
the spectrum of natural scenes, a quarter are views of the Mandelbrot set: smooth and fractal extremes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_LEAVES = 70


def pictures(count: int, size: int, random: np.random.Generator) -> Array:
    """`count` pictures as (count, 3, size, size), from 0 to 1."""
    makers = (dead_leaves, clouds, dead_leaves, mandelbrot)
    made = [makers[number % len(makers)](size, random) for number in range(count)]
    return np.stack(made).transpose(0, 3, 1, 2).astype(np.float32).clip(0, 1)


def dead_leaves(size: int, random: np.random.Generator) -> Any:
    """Shapes over shapes: sizes by an inverse cubic law, each of one colour with a shade and a grain."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    picture = np.broadcast_to(random.uniform(0, 1, 3), (size, size, 3)).astype(np.float32)
    tint = random.uniform(0, 1, 3)
    for _ in range(_LEAVES):
        radius = size * 0.04 / np.sqrt(random.uniform(0.006, 1.0))
        row, column = random.uniform(0, size, 2)
        turn = random.uniform(0, 2 * np.pi)
        down, right = rows - row, columns - column
        u, v = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
        match random.integers(3):
            case 0:
                inside = u * u + (v / random.uniform(0.4, 1)) ** 2 < radius * radius
            case 1:
                inside = (np.abs(u) < radius) & (np.abs(v) < radius * random.uniform(0.1, 0.8))
            case _:
                inside = (v > -radius / 2) & (v < radius - 1.7 * np.abs(u))
        colour = 0.6 * random.uniform(0, 1, 3) + 0.4 * tint
        shade = (u / radius * random.normal(0, 0.15) + random.normal(0, 0.03, (size, size)))[..., None]
        picture = np.where(inside[..., None], colour + shade, picture)
    return picture


def clouds(size: int, random: np.random.Generator) -> Any:
    """Noise whose power falls with the square of the frequency, in three colours that go together."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    slope = random.uniform(0.9, 1.5)
    layers = []
    for _ in range(3):
        noise = np.fft.irfft2(np.fft.rfft2(random.normal(size=(size, size))) / frequency**slope, s=(size, size))
        layers.append((noise - noise.mean()) / (noise.std() + 1e-6))
    mixed = np.stack(layers, axis=-1) @ random.normal(0, 0.25, (3, 3)).astype(np.float32)
    return random.uniform(0.2, 0.8, 3) + mixed * 0.6 + 0.12 * layers[0][..., None]


def mandelbrot(size: int, random: np.random.Generator) -> Any:
    """A view near the border of the set, coloured by how fast points escape."""
    turn = random.uniform(0, 2 * np.pi)
    centre = np.exp(1j * turn) / 2 - np.exp(2j * turn) / 4  # on the border of the main cardioid
    width = 10.0 ** random.uniform(-2, 0.3)
    line = np.linspace(-0.5, 0.5, size) * width
    points = (centre + line[None, :] + 1j * line[:, None]).astype(np.complex64)
    z, escaped = np.zeros_like(points), np.zeros(points.shape, dtype=np.float32)
    for step in range(1, 60):
        z = np.where(escaped == 0, z * z + points, z)
        escaped[(np.abs(z) > 2) & (escaped == 0)] = step
    phase = np.log1p(escaped)[..., None] * random.uniform(1, 4, 3) + random.uniform(0, 6, 3)
    return np.where(escaped[..., None] > 0, 0.5 + 0.5 * np.sin(phase), random.uniform(0, 0.3, 3))
