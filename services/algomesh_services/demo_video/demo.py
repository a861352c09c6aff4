"""The demo itself: a mesh in a temporary directory, three published services, and a film through all of them.

`video/split | video/stylize.each() | video/join` is one value; its route travels with the film, and the services hand
over to each other. What is shown meanwhile is what the ledger knows.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

import algomesh
from algomesh.clients import AsyncClient
from algomesh.pipeline import stage
from algomesh.publishing import publish
from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import read_admin_key
from algomesh_broker.identity import Identity
from algomesh_services.demo.mesh import own_mesh
from algomesh_services.demo.posts import CATALOG
from algomesh_services.demo.screen import Screen
from algomesh_services.demo_video.alone import Alone, measure_alone
from algomesh_services.demo_video.films import FPS, Picture, make_film, pictures_of, write_sheet

PROJECTS: Final = ("video_split", "video_stylize", "video_join")
PAINTER: Final = "video/stylize"
PIPELINE: Final = stage("video/split") | stage(PAINTER).each() | stage("video/join")
_LOOK_EVERY_S: Final = 0.2
# What has happened reaches the ledger a moment later.
_LEDGER_WITHIN_S: Final = 3.0
_COLUMNS: Final = 6


class Wanted(Struct, frozen=True, kw_only=True):
    """What film is wanted, and where the results go."""

    seconds: float
    size: tuple[int, int]
    output: Path


class Painted(Struct, frozen=True, kw_only=True):
    """What came out of the mesh, and how long that took."""

    film: bytes
    took_s: float


async def run(wanted: Wanted, screen: Screen) -> None:
    """The whole demo. Raises AloneFailed, MeshError, LocalError, ProgramError, OSError."""
    screen.title("algomesh demo: a film is split, painted and joined by three services")
    film = await asyncio.to_thread(make_film, wanted.seconds, wanted.size)
    before = pictures_of(film)
    segments = -(-len(before) // FPS)  # of a second each, as video/split makes them unless told otherwise
    screen.text(f"Film: {len(before)} pictures, {wanted.seconds:g} s at {FPS} a second, made by FFmpeg's generators.")
    screen.text(f"Pipeline: {PIPELINE!r}")
    with tempfile.TemporaryDirectory(prefix="algomesh-demo-") as name:
        folder = Path(name)
        began = time.monotonic()
        screen.title("1  Start a mesh on this machine (`algomesh up`) and publish the three")
        screen.moving("starting nats-server, PostgreSQL, registry, ledger, launcher, gateway …")
        async with own_mesh(folder) as running:
            screen.text(f"Ready after {time.monotonic() - began:.1f} s.")
            key = read_admin_key(Path(running.state) / "secrets") or ""
            async with await Connection.open(running.nats, Identity.of_key(key), name="demo") as connection:
                await _publish_all(connection, screen)
                async with algomesh.connect(key, running.nats) as client:
                    screen.title("2  Send the film three times: the first time starts the services")
                    cold = await _paint(client, connection, film, segments, screen)
                    screen.text(f"First time: {cold.took_s:.1f} s, {segments} segments, starts included.")
                    again = [await _paint(client, connection, film, segments, screen) for _ in range(2)]
                    warm = min(again, key=lambda painted: painted.took_s)
                    screen.text(
                        f"Then: {warm.took_s:.1f} s at best, {len(before) / warm.took_s:.0f} pictures a second."
                    )
        screen.title("3  The same in one process without the mesh, and what the painting is worth")
        screen.moving("painting again, then measuring …")
        alone = await measure_alone(folder, film, warm.film)
    _show_alone(screen, warm, alone)
    files = _write(wanted.output, film, warm.film, before)
    screen.line()
    screen.text(f"Written: {', '.join(map(str, files))}. All of it is stopped, and nothing is left.")
    screen.line()
    screen.last_line(json.dumps(_figures(len(before), segments, cold, warm, alone, files)))


async def _publish_all(connection: Connection, screen: Screen) -> None:
    for project in PROJECTS:
        began = time.monotonic()
        published = await publish(
            connection, CATALOG / project, report=lambda step: screen.moving(f"{step.step} {step.subject} …")
        )
        for version in published:
            screen.text(f"{version.algorithm} {version.version}  {time.monotonic() - began:.1f} s")


async def _paint(client: AsyncClient, connection: Connection, film: bytes, segments: int, screen: Screen) -> Painted:
    """The film through the pipeline; each segment that is done is told."""
    began = time.monotonic()
    told = asyncio.create_task(_tell_segments(connection, time.time(), segments, screen), name="segments")
    try:
        response = await client.algo(PIPELINE).pipe(film)
        took_s = time.monotonic() - began
        await asyncio.wait([told], timeout=_LEDGER_WITHIN_S)
    finally:
        told.cancel()
        await asyncio.gather(told, return_exceptions=True)
    return Painted(film=response.result, took_s=took_s)


async def _tell_segments(connection: Connection, since: float, segments: int, screen: Screen) -> None:
    """Say of each segment that it is painted."""
    told = 0
    while told < segments:
        painted = await _segments(connection, since)
        for number, row in enumerate(painted[told:], start=told + 1):
            screen.text(f"  segment {number} painted in {row.compute_ms / 1000:.1f} s by {row.instance}")
        told = len(painted)
        screen.moving(f"{told} of {segments} segments painted …")
        await asyncio.sleep(_LOOK_EVERY_S)


async def _segments(connection: Connection, since: float) -> list[platform.RunRow]:
    """The segments painted after `since`, the earliest first, as the ledger has them."""
    wanted = platform.Runs(algorithm=PAINTER, limit=1000)
    rows = (await ask(connection, "ledger", "runs", "", wanted, platform.RunRows)).runs
    done = [row for row in rows if row.state == "succeeded" and row.queued_at >= since]
    return sorted(done, key=lambda row: row.ended_at)


def _show_alone(screen: Screen, warm: Painted, alone: Alone) -> None:
    found = alone.losses
    screen.table(
        ("the whole film", "seconds"),
        [
            ("in the mesh, services running", f"{warm.took_s:.2f}"),
            ("in one process, imports and weights not counted", f"{alone.work_s:.2f}"),
            ("those imports and weights", f"{alone.start_s:.2f}"),
        ],
    )
    screen.line()
    screen.table(
        ("pictures of the film", "style loss", "content loss"),
        [
            ("as they were", f"{found.style_before:.3f}", f"{found.content_before:.3f}"),
            ("in the painting's colours", f"{found.style_recoloured:.3f}", ""),
            ("painted", f"{found.style_after:.3f}", f"{found.content_after:.3f}"),
            ("another picture of the film", "", f"{found.content_another:.3f}"),
        ],
    )
    screen.text("style: how far from the painting's strokes and colours. content: how much of the picture is lost.")


def _write(output: Path, film: bytes, painted: bytes, before: list[Picture]) -> list[Path]:
    """The two films, and a sheet with pictures before and after. Raises OSError."""
    output.mkdir(parents=True, exist_ok=True)
    files = [output / name for name in ("film.mp4", "painted.mp4", "sheet.png")]
    files[0].write_bytes(film)
    files[1].write_bytes(painted)
    after = pictures_of(painted)
    places = [index * len(before) // _COLUMNS for index in range(_COLUMNS)]
    write_sheet(files[2], [[pictures[place] for place in places] for pictures in (before, after)])
    return files


def _figures(
    pictures: int, segments: int, cold: Painted, warm: Painted, alone: Alone, files: list[Path]
) -> dict[str, object]:
    found = alone.losses
    return {
        "pictures": pictures,
        "segments": segments,
        "first_s": round(cold.took_s, 2),
        "mesh_s": round(warm.took_s, 2),
        "alone_s": round(alone.work_s, 2),
        "alone_start_s": round(alone.start_s, 2),
        "style_loss": {
            "before": round(found.style_before, 3),
            "recoloured": round(found.style_recoloured, 3),
            "after": round(found.style_after, 3),
        },
        "content_loss": {
            "before": round(found.content_before, 3),
            "after": round(found.content_after, 3),
            "another": round(found.content_another, 3),
        },
        "files": [str(file) for file in files],
    }
