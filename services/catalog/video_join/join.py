"""video/join makes a video of segments of frames: an mp4 that every browser plays, without sound.

The picture is H.264 where the installed FFmpeg can encode it, else MPEG-4 part 2.
"""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Final

import av
import av.codec
import av.error
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from algomesh import AlgorithmError, algorithm

Segment = npt.NDArray[np.uint8]
# By preference, each with the options of a good picture at a fair size.
_ENCODERS: Final = {
    "libx264": {"crf": "18", "preset": "veryfast", "threads": "1"},
    "mpeg4": {"qscale": "3"},
}
_FPS: Final = 12.0


class Reel(Struct, frozen=True, kw_only=True):
    """Frames, all in one array, and how fast they are shown."""

    frames: Segment
    fps: Annotated[float, Meta(gt=0, le=120)] = _FPS


@algorithm("video/join", version="1.0.0", memory="2Gi", timeout="10m")
def join(reel: list[Segment] | Reel) -> bytes:
    """Encode segments, (frames, height, width, 3) in bytes each, as one mp4; 12 frames a second unless it says else.

    Raises AlgorithmError ("InputError") for segments that are no pictures, or not of one size.
    """
    if isinstance(reel, Reel):
        return encoded([reel.frames], reel.fps)
    return encoded(reel, _FPS)


def encoded(segments: Sequence[Segment], fps: float) -> bytes:
    """The mp4. A side that is odd becomes even, as the encoders want it, by its last row or column being repeated."""
    height, width = size_of(segments)
    name, options = encoder()
    written = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(written, "w", format="mp4") as target:
        stream: Any = target.add_stream(name, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        number = 0
        for segment in segments:
            padded = np.pad(segment, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            for frame in padded:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts, picture.time_base = number, 1 / rate
                target.mux(stream.encode(picture))
                number += 1
        target.mux(stream.encode(None))
    return written.getvalue()


def encoder() -> tuple[str, dict[str, str]]:
    """The first of the encoders that FFmpeg has here, and its options. Raises AlgorithmError where it has none."""
    for name, options in _ENCODERS.items():
        if name in av.codec.codecs_available:
            return name, options
    raise AlgorithmError(f"this FFmpeg has none of the encoders {', '.join(_ENCODERS)}", error_type="SystemError")


def size_of(segments: Sequence[Segment]) -> tuple[int, int]:
    """Height and width of all frames. Raises AlgorithmError where they differ, or there is no frame."""
    for number, segment in enumerate(segments):
        if segment.ndim != 4 or segment.shape[3] != 3 or segment.dtype != np.uint8:
            raise AlgorithmError(
                f"segment {number} is {segment.dtype} {list(segment.shape)}; "
                "(frames, height, width, 3) in uint8 is wanted",
                error_type="InputError",
            )
    sizes = {segment.shape[1:3] for segment in segments if len(segment)}
    if len(sizes) != 1:
        found = " and ".join(f"{width} × {height}" for height, width in sorted(sizes)) or "no frame at all"
        raise AlgorithmError(f"a video has frames of one size; there are {found}", error_type="InputError")
    height, width = sizes.pop()
    if not height or not width:
        raise AlgorithmError("the frames have no pixels", error_type="InputError")
    return int(height), int(width)
