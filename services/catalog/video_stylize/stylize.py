"""video/stylize paints the frames of a video in the manner of a picture (`painting.py`), by a small network.

It takes a segment as `video/split` gives it, an array of bytes (frames, height, width, 3), and gives one of the same
shape. Each frame is painted by itself; they go through the network a few at a time. What it was trained for, and how
that was measured, is in README.md and ADR 0010.
"""

import logging
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from style_net import load_weights, paint

from algomesh import AlgorithmError, algorithm

_log = logging.getLogger(__name__)

Segment = npt.NDArray[np.uint8]
# So many pixels go through the network together: 16 frames of 320 × 180 on a GPU.
_PIXELS_AT_ONCE: Final = {"cuda": 2**20, "cpu": 2**17}


@algorithm("video/stylize", version="1.0.0", gpu=0.5, memory="2Gi", timeout="5m", preload=["numpy", "torch"])
class Stylize:
    """Paints frames in the manner of a picture."""

    def load(self) -> None:
        """Read the weights onto the GPU that the mesh gave, or onto the CPU where there is none."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            _log.warning("no GPU here: video/stylize 1.0.0 runs on the CPU")
        self._weights = load_weights(self._device)

    def apply(self, segment: Segment) -> Segment:
        """Paint every frame. Raises AlgorithmError ("InputError") for what are no frames."""
        if segment.ndim != 4 or segment.shape[3] != 3 or segment.dtype != np.uint8:
            raise AlgorithmError(
                f"this is {segment.dtype} {list(segment.shape)}; (frames, height, width, 3) in uint8 is wanted",
                error_type="InputError",
            )
        painted = np.empty_like(segment)
        if segment.size:
            height, width = segment.shape[1:3]
            together = max(1, _PIXELS_AT_ONCE[self._device] // (height * width))
            for start in range(0, len(segment), together):
                painted[start : start + together] = self._painted(segment[start : start + together])
        return painted

    def _painted(self, frames: Segment) -> Segment:
        with torch.inference_mode():
            # A copy: what came in a message must not be written to, and torch wants memory that may be.
            pictures = torch.from_numpy(frames.copy()).to(self._device).permute(0, 3, 1, 2).float() / 255
            painted = paint(self._weights, pictures).mul(255).round().to(torch.uint8)
            found: Segment = painted.permute(0, 2, 3, 1).cpu().numpy()
        return found
