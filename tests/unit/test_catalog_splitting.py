"""video/split: where segments begin, and when a video is cut in two. Without decoding anything."""

import pytest

from tests.catalog import load

pytest.importorskip("av", reason="needs av of the extra `catalog`")
splitting = load("split", "video_split")


@pytest.mark.parametrize(
    ("fps", "segment_s", "frames"), [(12.0, 1.0, 12), (10.0, 0.7, 7), (29.97, 1.0, 30), (1.0, 0.1, 1), (0.5, 10.0, 5)]
)
def test_a_segment_has_as_many_frames_as_its_seconds_ask_for(fps: float, segment_s: float, frames: int) -> None:
    assert splitting.frames_per_segment(splitting.Source(video=b"", fps=fps, segment_s=segment_s))[1] == frames


def test_what_is_short_enough_is_not_cut() -> None:
    source = splitting.Source(video=b"not looked at", alone_s=30, begin_s=10, end_s=40)

    assert splitting.cut(source) is None


def test_one_segment_is_never_cut() -> None:
    source = splitting.Source(video=b"not looked at", alone_s=1, segment_s=100, begin_s=0, end_s=90)

    assert splitting.cut(source) is None


def test_a_source_is_read_from_bytes_and_from_a_mapping() -> None:
    read = splitting.split.signature.read

    assert read("binary", "", memoryview(b"abc")) == b"abc"
    source = read("json", "", b'{"video": "YWJj", "fps": 6}')
    assert (source.video, source.fps, source.segment_s) == (b"abc", 6.0, 1.0)
