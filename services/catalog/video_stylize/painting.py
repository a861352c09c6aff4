"""The picture whose manner video/stylize has learned: brush strokes along a whirling field, painted by arithmetic.

    python painting.py painting.png     writes it, to be looked at (needs PyAV)

Thick strokes with the marks of their bristles, in layers from coarse to fine, night blue with whorls of ochre and
cream. It belongs to this project, so that no foreign picture does. The same seed gives the same picture.
"""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SIZE = 256
SEED = 7
# Strokes, their length in steps, and half their width in pixels: coarse ones below, fine ones above.
LAYERS = ((1000, 26, 4.5), (2000, 20, 3.0), (2900, 14, 1.8))
PALETTE = np.array(
    [
        [0.05, 0.09, 0.28],
        [0.09, 0.22, 0.49],
        [0.16, 0.40, 0.62],
        [0.47, 0.66, 0.70],
        [0.90, 0.82, 0.55],
        [0.93, 0.66, 0.18],
        [0.76, 0.31, 0.12],
    ],
    dtype=np.float32,
)
WHORLS = ((0.28, 0.30, 0.19), (0.70, 0.24, 0.13), (0.62, 0.66, 0.24), (0.16, 0.78, 0.15), (0.92, 0.88, 0.12))
_STEP = 1.6
# Strokes end before the canvas does, so its border is cut off.
_MARGIN = 8


def paint_picture(size: int = SIZE, seed: int = SEED) -> Array:
    """The painting: (size, size, 3), red, green and blue from 0 to 1."""
    random = np.random.default_rng(seed)
    scale = size / SIZE
    size += 2 * _MARGIN
    tone, angle = _tone(size), _angle(size)
    canvas = np.broadcast_to(PALETTE[1], (size, size, 3)).copy()
    for count, steps, radius in LAYERS:
        for _ in range(round(count * scale * scale)):
            place = random.uniform(0, size, 2)
            row, column = place.astype(int)
            wanted = tone[row, column] + random.normal(0, 0.55)
            light = random.normal(0, 0.05)
            _stroke(canvas, angle, place, steps, radius, _mixed(wanted) + light, random)
    return canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].clip(0, 1)


def _tone(size: int) -> Array:
    """Where on the palette each place lies: bright in the whorls' hearts, dark between them."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    tone = np.full((size, size), 0.6, dtype=np.float32) + 1.1 * np.sin(7 * rows + 3 * np.sin(5 * columns)) ** 2
    for x, y, radius in WHORLS:
        distance = np.hypot(columns - x, rows - y) / radius
        tone += 4.6 * np.exp(-((distance * 1.5) ** 2)) + 1.5 * np.exp(-(((distance - 1.0) * 4) ** 2))
    return tone


def _angle(size: int) -> Array:
    """Which way a stroke goes at each place: round the whorls, and in waves between them."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    east = 0.35 + 0.0 * rows
    south = 0.35 * np.sin(9 * columns + 4 * rows)
    for number, (x, y, radius) in enumerate(WHORLS):
        right, down = columns - x, rows - y
        distance = np.hypot(right, down) + 1e-6
        pull = np.exp(-((distance / radius / 1.2) ** 2)) * 2.5 * (-1 if number % 2 else 1)
        east += -down / distance * pull
        south += right / distance * pull
    return np.arctan2(south, east).astype(np.float32)


def _mixed(tone: float) -> Array:
    """A colour between two neighbours of the palette."""
    place = float(np.clip(tone, 0, len(PALETTE) - 1.001))
    lower = int(place)
    return PALETTE[lower] * (1 - (place - lower)) + PALETTE[lower + 1] * (place - lower)


def _stroke(
    canvas: Array, angle: Array, place: Any, steps: int, radius: float, colour: Array, random: np.random.Generator
) -> None:
    """Draw one stroke onto the canvas: dabs one after the other, each a row of bristles across the way it goes."""
    size = len(canvas)
    reach = int(np.ceil(radius)) + 1
    offsets = np.arange(-reach, reach + 1, dtype=np.float32)
    bristles = random.normal(0, 0.07, 2 * reach + 1).astype(np.float32)
    for step in range(steps):
        row, column = int(place[0]), int(place[1])
        if not (reach <= row < size - reach and reach <= column < size - reach):
            return
        heading = angle[row, column]
        along_x, along_y = np.cos(heading), np.sin(heading)
        across = offsets[None, :] * -along_y + offsets[:, None] * along_x
        along = offsets[None, :] * along_x + offsets[:, None] * along_y
        width = radius * min(1.0, (step + 1) / 3, (steps - step) / 4)
        cover = (np.clip(width - np.abs(across) + 0.5, 0, 1) * np.clip(1.5 - np.abs(along), 0, 1))[..., None]
        marks = bristles[np.clip(np.rint(across) + reach, 0, 2 * reach).astype(int)][..., None]
        ridge = 0.05 * across[..., None] / radius  # the light falls on one side of thick paint
        patch = canvas[row - reach : row + reach + 1, column - reach : column + reach + 1]
        patch += cover * (colour + marks + ridge - patch)
        place = place + np.array([along_y, along_x]) * _STEP


def main() -> None:
    """Write the picture to the file named."""
    import av

    picture = av.VideoFrame.from_ndarray((paint_picture() * 255).astype(np.uint8), format="rgb24")
    picture.save(sys.argv[1])


if __name__ == "__main__":
    main()
