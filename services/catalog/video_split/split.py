"""video/split cuts a video into segments of frames, and a long one by calling itself on its halves.

A segment is an array of bytes (frames, height, width, 3), red, green and blue. A list of them is what
`video/stylize` takes one by one (`split | stylize.each() | join`) and `video/join` makes a video of again. The sound
is left out.

A video of more than `alone_s` seconds is cut in two where one segment ends and the next begins, without decoding it;
both halves are sent to `video/split` at once, and their lists are put one behind the other. So several instances
decode a long video together. The result is the same, frame by frame.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from msgspec.structs import replace
from reading import Frame, frames, length_s, part, size

import algomesh
from algomesh import AlgorithmError, algorithm

Segment = npt.NDArray[np.uint8]
# Finer than any camera's; a fraction that no float can make long.
_FINEST: Final = 1_000
_LARGEST_BYTES: Final = 2**30
# Files are wrong about their own length by less.
_INEXACT_S: Final = 1.0


class Source(Struct, frozen=True, kw_only=True):
    """A video and how to cut it."""

    video: bytes
    """The whole file: mp4, mov, webm, mkv, avi and what else FFmpeg reads."""
    fps: Annotated[float, Meta(gt=0, le=120)] = 12.0
    """Frames per second that come out, however many went in."""
    segment_s: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    """Length of a segment in seconds; the last one may be shorter. At least one frame."""
    longest_side: Annotated[int, Meta(ge=16, le=8192)] = 640
    """Larger pictures are made smaller, to so many pixels."""
    alone_s: Annotated[float, Meta(gt=0)] = 30.0
    """What is longer is cut in two."""
    begin_s: Annotated[float, Meta(ge=0)] = 0.0
    """The part of the video that is wanted: from here, in seconds …"""
    end_s: Annotated[float, Meta(ge=0)] | None = None
    """… to here; None for its end."""


@algorithm("video/split", version="1.0.0", calls=["video/split"], memory="4Gi", timeout="10m")
def split(source: bytes | Source) -> list[Segment]:
    """Cut a video, given as its bytes or with parameters, into segments of frames.

    Raises AlgorithmError ("InputError") for what is no video, or is more than 1 GiB of frames.
    """
    source = Source(video=source) if isinstance(source, bytes) else source
    length = length_s(source.video)
    if length is None:
        return list(segments(source))  # nobody knows where its middle is
    end_s = float(length) if source.end_s is None else min(source.end_s, float(length) + _INEXACT_S)
    source = replace(source, end_s=end_s)
    check_size(source)
    halves = cut(source)
    if halves is None or not algomesh.current().algorithm:
        return list(segments(source))
    splitter = algomesh.current().client.algo("video/split")
    with ThreadPoolExecutor(max_workers=len(halves), thread_name_prefix="half") as both:
        found = list(both.map(lambda half: splitter.pipe(half).result, halves))
    return [segment for half in found for segment in half]


def segments(source: Source) -> Iterator[Segment]:
    """Decode the part of the video that is wanted, segment by segment."""
    fps, length = frames_per_segment(source)
    end = None if source.end_s is None else _fraction(source.end_s)
    kept: list[Frame] = []
    size_bytes = 0
    for frame in frames(source.video, fps, _fraction(source.begin_s), end, source.longest_side):
        kept.append(frame)
        size_bytes += frame.nbytes
        _check_bytes(size_bytes)
        if len(kept) == length:
            yield np.stack(kept)
            kept = []
    if kept:
        yield np.stack(kept)


def cut(source: Source) -> tuple[Source, Source] | None:
    """The two halves of what is longer than `alone_s`, whole segments each; None for what is to be decoded here."""
    assert source.end_s is not None
    begin, end = _fraction(source.begin_s), _fraction(source.end_s)
    fps, length = frames_per_segment(source)
    step = length / fps
    count = -((begin - end) // step)
    if end - begin <= _fraction(source.alone_s) or count < 2:
        return None
    middle = begin + count // 2 * step
    return _half(source, begin, middle), _half(source, middle, end)


def _half(source: Source, begin: Fraction, end: Fraction) -> Source:
    video, starts = part(source.video, begin, end)
    return replace(source, video=video, begin_s=float(begin - starts), end_s=float(end - starts))


def check_size(source: Source) -> None:
    """Raises AlgorithmError for more than 1 GiB of frames, before any is decoded."""
    assert source.end_s is not None
    width, height = size(source.video, source.longest_side)
    _check_bytes(int(width * height * 3 * source.fps * max(0.0, source.end_s - source.begin_s)))


def _check_bytes(size_bytes: int) -> None:
    if size_bytes > _LARGEST_BYTES:
        raise AlgorithmError(
            f"the frames would be {size_bytes / 2**30:.1f} GiB, and 1 GiB is the most; ask for fewer frames a second, "
            "a smaller longest_side, or a part by begin_s and end_s",
            error_type="InputError",
        )


def frames_per_segment(source: Source) -> tuple[Fraction, int]:
    """Frames per second, exactly, and frames per segment."""
    fps = max(Fraction(1, _FINEST), Fraction(source.fps).limit_denominator(_FINEST + 1))
    return fps, max(1, round(fps * _fraction(source.segment_s)))


def _fraction(seconds: float) -> Fraction:
    """What a float stands for: 1/3 and not what is left of it in binary."""
    return Fraction(seconds).limit_denominator(1_000_000)
