"""The video projects of the catalog with FFmpeg, torch and the trained weights; first alone, then in a mesh."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import algomesh
from algomesh import AlgorithmError, content
from tests.catalog import CATALOG, load
from tests.conditions import until
from tests.integration.up_fixtures import Up

av = pytest.importorskip("av", reason="needs av of the extra `catalog`")
np = pytest.importorskip("numpy", reason="needs numpy of the extra `catalog`")
pytestmark = pytest.mark.integration

splitting = load("split", "video_split")
joining = load("join", "video_join")
Source = splitting.Source


def encoded(codec: str, container: str, *, frames: int = 60, fps: int = 12, **options: str) -> bytes:
    """A film of a test card, 96 × 64."""
    graph = av.filter.Graph()
    card, sink = graph.add("testsrc2", f"size=96x64:rate={fps}"), graph.add("buffersink")
    card.link_to(sink)
    graph.configure()
    written = io.BytesIO()
    with av.open(written, "w", format=container) as film:
        stream = film.add_stream(codec, rate=fps, options={"g": "10", "threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(frames):
            frame = graph.pull().reformat(96, 64, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return written.getvalue()


@pytest.fixture(scope="module")
def film() -> bytes:
    return encoded("libx264", "mp4")


@pytest.fixture(scope="module")
def stylize() -> Any:
    pytest.importorskip("torch", reason="needs torch of the extra `catalog`")
    return load("stylize", "video_stylize").Stylize


def in_halves(source: Any) -> Iterator[Any]:
    """What `split` does in a mesh, without one."""
    halves = splitting.cut(source)
    if halves is None:
        yield from splitting.segments(source)
    else:
        for half in halves:
            yield from in_halves(half)


def test_a_film_becomes_segments_of_a_second(film: bytes) -> None:
    segments = splitting.split(film)

    assert [segment.shape for segment in segments] == [(12, 64, 96, 3)] * 5
    assert {segment.dtype for segment in segments} == {np.dtype("uint8")}


@pytest.mark.parametrize(
    ("wanted", "counts"),
    [
        ({"fps": 6.0}, [6] * 5),
        ({"fps": 24.0, "segment_s": 2.0}, [48, 48, 24]),
        ({"segment_s": 1.5}, [18, 18, 18, 6]),
        ({"begin_s": 1.25, "end_s": 2.5}, [12, 3]),
        ({"begin_s": 9.0}, []),
    ],
)
def test_rate_length_and_part_are_parameters(film: bytes, wanted: dict[str, float], counts: list[int]) -> None:
    segments = splitting.split(Source(video=film, **wanted))

    assert [len(segment) for segment in segments] == counts


def test_large_pictures_are_made_smaller(film: bytes) -> None:
    assert splitting.split(Source(video=film, longest_side=48))[0].shape == (12, 32, 48, 3)


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "mp4"), ("libx264", "mpegts"), ("libx264", "matroska"), ("mpeg4", "avi"), ("libvpx-vp9", "webm")],
)
@pytest.mark.parametrize("wanted", [{}, {"fps": 10.0, "segment_s": 0.7}, {"fps": 25.0, "segment_s": 0.5}])
def test_halves_of_halves_hold_the_same_pictures(codec: str, container: str, wanted: dict[str, float]) -> None:
    if codec not in av.codec.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    source = Source(video=encoded(codec, container), end_s=5.0, alone_s=1.0, **wanted)

    whole, parts = list(splitting.segments(source)), list(in_halves(source))

    assert [len(part) for part in parts] == [len(segment) for segment in whole]
    assert all(np.array_equal(part, segment) for part, segment in zip(parts, whole, strict=True))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 10_000], ids=["empty", "text", "zeros"])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(AlgorithmError, match="no video that can be read") as caught:
        splitting.split(data)

    assert caught.value.error_type == "InputError"


def test_a_file_that_is_cut_short_is_refused(film: bytes) -> None:
    with pytest.raises(AlgorithmError, match="no video that can be read"):
        splitting.split(film[: len(film) // 2])


def test_a_play_list_opens_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(encoded("libx264", "mpegts"))
    lists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
    )

    for text in lists:
        with pytest.raises(AlgorithmError, match="no video that can be read"):
            splitting.split(text.encode())


def test_a_file_without_pictures_says_so() -> None:
    written = io.BytesIO()
    with av.open(written, "w", format="wav") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
        sound.mux(stream.encode(None))

    with pytest.raises(AlgorithmError, match=r"no video that can be read|no picture"):
        splitting.split(written.getvalue())


def test_more_frames_than_memory_has_room_for_are_refused_before_the_work(film: bytes) -> None:
    with pytest.raises(AlgorithmError, match="1 GiB is the most") as caught:
        splitting.check_size(Source(video=film, fps=120.0, end_s=1e6))

    assert caught.value.error_type == "InputError"


def test_joined_segments_are_the_film_again(film: bytes) -> None:
    segments = splitting.split(film)

    again = splitting.split(joining.join(segments))

    assert [segment.shape for segment in again] == [segment.shape for segment in segments]
    assert max(float(np.abs(a.astype(int) - b).mean()) for a, b in zip(again, segments, strict=True)) < 8


@pytest.mark.parametrize("shape", [(2, 33, 51, 3), (1, 2, 2, 3)])
def test_any_size_can_be_joined(shape: tuple[int, ...]) -> None:
    [segment] = splitting.split(Source(video=joining.join([np.zeros(shape, np.uint8)]), segment_s=10.0))

    assert segment.shape == (shape[0], shape[1] + shape[1] % 2, shape[2] + shape[2] % 2, 3)


def test_a_reel_says_how_fast_it_is_shown() -> None:
    frames = np.zeros((24, 32, 32, 3), np.uint8)
    travelled = joining.join.signature.read(*content.encode({"frames": frames, "fps": 24.0}))

    assert len(splitting.split(joining.join([frames]))) == 2
    assert len(splitting.split(joining.join(travelled))) == 1


@pytest.mark.parametrize(
    ("segments", "why"),
    [
        ([], "no frame at all"),
        ([np.zeros((0, 8, 8, 3), np.uint8)], "no frame at all"),
        ([np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 9, 3), np.uint8)], "8 × 8 and 9 × 8"),
        ([np.zeros((1, 8, 8, 4), np.uint8)], "segment 0 is uint8"),
        ([np.zeros((1, 8, 8, 3), np.float32)], "segment 0 is float32"),
        ([np.zeros((8, 8, 3), np.uint8)], r"segment 0 is uint8 \[8, 8, 3\]"),
    ],
)
def test_what_is_no_film_is_not_joined(segments: list[Any], why: str) -> None:
    with pytest.raises(AlgorithmError, match=why) as caught:
        joining.join(segments)

    assert caught.value.error_type == "InputError"


@pytest.mark.parametrize("shape", [(3, 36, 64, 3), (1, 1, 1, 3), (2, 17, 33, 3), (0, 36, 64, 3)])
def test_what_is_painted_keeps_its_shape(stylize: Any, shape: tuple[int, ...]) -> None:
    painted = stylize(np.zeros(shape, np.uint8))

    assert painted.shape == shape
    assert painted.dtype == np.uint8


def test_a_frame_is_painted_alike_alone_and_among_others(stylize: Any, film: bytes) -> None:
    frames = splitting.split(film)[0][:4]

    alone = np.concatenate([stylize(frames[number : number + 1]) for number in range(4)])

    assert np.abs(alone.astype(int) - stylize(frames)).max() <= 1


@pytest.mark.parametrize("value", [np.zeros((36, 64, 3), np.uint8), np.zeros((1, 36, 64, 3), np.float32)])
def test_what_are_no_frames_is_not_painted(stylize: Any, value: Any) -> None:
    with pytest.raises(AlgorithmError, match="is wanted"):
        stylize(value)


def test_painting_does_what_no_colour_filter_can(stylize: Any) -> None:
    """On pictures of a seed that the network was not trained with; also where both have the same colours."""
    import torch

    losses, painting = load("style_losses", "video_stylize"), load("painting", "video_stylize")
    pictures = load("content_pictures", "video_stylize").pictures(4, 192, np.random.default_rng(2026))
    frames = (pictures.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    originals, painted = (
        torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255 for array in (frames, stylize(frames))
    )
    model = torch.from_numpy(painting.paint_picture()).permute(2, 0, 1)
    critic = losses.Critic(model)

    style = {
        name: float(critic.style(shown).mean())
        for name, shown in {
            "as it is": originals,
            "recoloured": losses.recoloured(originals, model),
            "painted": painted,
            "in the colours it is painted in": torch.cat(
                [losses.recoloured(one[None], other) for one, other in zip(originals, painted, strict=True)]
            ),
        }.items()
    }
    lost = float(critic.content(painted, originals).mean())
    unrelated = float(critic.content(originals.roll(1, dims=0), originals).mean())

    assert style["painted"] < style["recoloured"] / 3
    assert style["painted"] < style["as it is"] / 8
    assert style["painted"] < style["in the colours it is painted in"] / 2.5
    assert lost < unrelated / 2
    assert float(critic.style(model[None])[0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.timeout(180)
async def test_a_long_film_is_split_by_the_splitter_calling_itself(tmp_path: Path, film: bytes) -> None:
    expected = list(splitting.segments(Source(video=film, end_s=5.0)))

    with Up(tmp_path / "state") as up:
        assert up.run("publish", str(CATALOG / "video_split")).returncode == 0
        async with algomesh.connect(up.said["key"], up.said["nats"]) as client:
            found = (await client.algo("video/split").pipe(Source(video=film, alone_s=1.5), timeout=60)).result
        # Five segments, four times cut in two: the ledger has nine runs in a moment.
        await until(lambda: [run["state"] for run in up.json("runs")] == ["succeeded"] * 9, 10)
        runs = up.json("runs")

    assert len(found) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len({run["root"] for run in runs}) == 1
