"""Frames of a video, at a steady rate and of one size; and parts of a video that need no decoding to be cut out.

Times are seconds from the video's first picture, as fractions, so that nothing drifts. PyAV is imported here only.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Final

import av
import av.error
import numpy as np
import numpy.typing as npt

from algomesh import AlgorithmError

Frame = npt.NDArray[np.uint8]
# Containers only: FFmpeg reads play lists too, and those make it open other files and addresses.
_CONTAINERS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,nut,asf,gif,apng,yuv4mpegpipe,ivf"
# Matroska keeps whole milliseconds.
_TOLERANCE_S: Final = Fraction(2, 1000)


@contextmanager
def opened(video: bytes) -> Iterator[Any]:
    """The container. Raises AlgorithmError ("InputError") for what is no video, or is a broken one."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(video), options=options) as container:
            if not container.streams.video:
                raise AlgorithmError("there is no picture in this file, only sound", error_type="InputError")
            yield container
    except (av.error.FFmpegError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise AlgorithmError(f"this is no video that can be read: {why}", error_type="InputError") from error


def length_s(video: bytes) -> Fraction | None:
    """When the last picture ends; None where the file does not say."""
    with opened(video) as container:
        stream = container.streams.video[0]
        if stream.duration:
            return Fraction(stream.duration * stream.time_base)
        return Fraction(container.duration, av.time_base) if container.duration else None


def size(video: bytes, longest_side: int) -> tuple[int, int]:
    """Width and height of the frames."""
    with opened(video) as container:
        stream = container.streams.video[0]
        return _fitted(stream.width, stream.height, longest_side)


def frames(
    video: bytes, fps: Fraction, begin_s: Fraction, end_s: Fraction | None, longest_side: int
) -> Iterator[Frame]:
    """Yield what is seen at `begin_s` and every frame's length later, before `end_s`, as (height, width, 3).

    Pictures whose longer side exceeds `longest_side` are made smaller. Raises as `opened`.
    """
    with opened(video) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        width, height = _fitted(stream.width, stream.height, longest_side)
        shown, number, ends_s = None, 0, Fraction(0)

        def due(until_s: Fraction) -> bool:
            at_s = begin_s + number / fps
            return at_s + _TOLERANCE_S < until_s and (end_s is None or at_s + _TOLERANCE_S < end_s)

        for picture in container.decode(stream):
            starts_s = ends_s if picture.pts is None else _since_start(picture.pts, stream)
            while shown is not None and due(starts_s):
                yield _array(shown, width, height)
                number += 1
            lasts_s = Fraction((picture.duration or 0) * (picture.time_base or 0)) or 1 / _rate(stream, fps)
            shown, ends_s = picture, starts_s + lasts_s
            if end_s is not None and starts_s >= end_s:
                return
        while shown is not None and due(ends_s):
            yield _array(shown, width, height)
            number += 1


def part(video: bytes, begin_s: Fraction, end_s: Fraction) -> tuple[bytes, Fraction]:
    """A Matroska file that shows the same from `begin_s` to `end_s`, copied and not encoded anew, and when it begins.

    That is with the last picture before `begin_s` that can be shown by itself. Raises as `opened`.
    """
    copied = io.BytesIO()
    with opened(video) as source, av.open(copied, "w", format="matroska") as target:
        stream = source.streams.video[0]
        track = target.add_stream_from_template(stream)
        packets = _packets(source, stream, begin_s, end_s)
        first = min((packet.pts for packet in packets), default=stream.start_time or 0)
        times = sorted(packet.pts - first for packet in packets)
        # Some containers do not say in which order to decode. Pictures are in that order; these times are too.
        delay = max((when - (packet.pts - first) for when, packet in zip(times, packets, strict=True)), default=0)
        for when, packet in zip(times, packets, strict=True):
            packet.pts, packet.dts = packet.pts - first, max(0, when - delay)
            packet.stream = track
            target.mux(packet)
        starts_s = _since_start(first, stream)
    return copied.getvalue(), starts_s


def _packets(source: Any, stream: Any, begin_s: Fraction, end_s: Fraction) -> list[Any]:
    """The packets of a part: from the last key picture before it to the first after it, and what shows before that."""
    kept: list[Any] = []
    key: int | None = None
    last: int | None = None
    for packet in source.demux(stream):
        if packet.pts is None or not packet.size:
            continue  # the end of the file, or a packet that nobody can place
        starts_s = _since_start(packet.pts, stream)
        if last is not None and packet.pts > last:
            break
        if packet.is_keyframe and last is None:
            if key is None or starts_s <= begin_s:
                kept.clear()
                key = packet.pts
            elif starts_s >= end_s:
                last = packet.pts
        # Pictures that show before the key picture they follow need those before it.
        if key is None or packet.pts >= key:
            kept.append(packet)
    return kept


def _since_start(pts: int, stream: Any) -> Fraction:
    return Fraction((pts - (stream.start_time or 0)) * stream.time_base)


def _fitted(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """The size that keeps the picture's shape within `longest_side`; never larger than it is."""
    scale = min(1.0, longest_side / max(width, height, 1))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _rate(stream: Any, fps: Fraction) -> Fraction:
    return Fraction(stream.average_rate) if stream.average_rate else fps


def _array(picture: Any, width: int, height: int) -> Frame:
    array: Frame = picture.reformat(width, height, format="rgb24").to_ndarray()
    return array
