"""The demo's own film, made by FFmpeg's generators, and pictures out of films. Only this module imports PyAV."""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import av.codec
import av.filter
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

FPS: Final = 12
# A zoom into the Mandelbrot set, a spiral of colours, and a test card: fractal, smooth and hard-edged.
_SCENES: Final = (
    ("mandelbrot", "size={size}:rate={fps}:maxiter=400:end_scale=0.02:end_pts=60"),
    ("gradients", "size={size}:rate={fps}:nb_colors=6:type=spiral:speed=0.05:seed=4"),
    ("testsrc2", "size={size}:rate={fps}"),
)
_GAP: Final = 4
_WHITE: Final = 255


def make_film(seconds: float, size: tuple[int, int]) -> bytes:
    """An mp4 of our scenes, each as long as the others, at FPS frames a second."""
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as film:
        codec = "libx264" if "libx264" in av.codec.codecs_available else "mpeg4"
        stream: Any = film.add_stream(codec, rate=FPS, options={"g": str(FPS), "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = size[0] & ~1, size[1] & ~1, "yuv420p"
        for number, picture in enumerate(_scenes(max(1, round(seconds * FPS)), size)):
            frame = picture.reformat(stream.width, stream.height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return written.getvalue()


def pictures_of(film: bytes) -> list[Picture]:
    """Every picture of a film, (height, width, 3)."""
    with av.open(io.BytesIO(film), "r") as opened:
        return [np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8) for frame in opened.decode(video=0)]


def write_sheet(file: Path, rows: Sequence[Sequence[Picture]]) -> None:
    """Write rows of pictures of one size as one PNG. Raises OSError."""
    height, width = rows[0][0].shape[:2]
    across, down = len(rows[0]), len(rows)
    sheet = np.full((down * (height + _GAP) + _GAP, across * (width + _GAP) + _GAP, 3), _WHITE, dtype=np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
            sheet[top : top + height, left : left + width] = picture[:height, :width]
    file.write_bytes(_png(sheet))


def _scenes(count: int, size: tuple[int, int]) -> Iterator[Any]:
    width, height = size
    for number, (name, options) in enumerate(_SCENES):
        wanted = count * (number + 1) // len(_SCENES) - count * number // len(_SCENES)
        graph = av.filter.Graph()
        source = graph.add(name, options.format(size=f"{width}x{height}", fps=FPS))
        sink = graph.add("buffersink")
        source.link_to(sink)
        graph.configure()
        for _ in range(wanted):
            yield graph.pull()


def _png(picture: Picture) -> bytes:
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 1)
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
