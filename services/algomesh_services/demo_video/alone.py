"""The same work in one process without a mesh, and how far the painted pictures are from the painting's manner.

    python -m algomesh_services.demo_video.alone FILM PAINTED ANSWER

In a process of its own, so that it pays for its imports as the services pay for theirs. It writes `Alone` to ANSWER as
JSON. FILM is what was sent into the mesh, PAINTED what came out of it; both are mp4 files.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

import algomesh_services
from algomesh_broker.child import Command, last_lines, spawn

_CATALOG: Final = Path(algomesh_services.__file__).parent.parent / "catalog"
_PROJECTS: Final = ("video_split", "video_stylize", "video_join")
# So many pictures, evenly over the film, are measured.
_MEASURED: Final = 10


class AloneFailed(Exception):
    """The process ended without an answer; the sentence holds its last words."""


class Losses(Struct, frozen=True, kw_only=True):
    """Means over the measured pictures, by `style_losses.py` of video/stylize. Content is against the picture itself.

    `recoloured` is the best that a colour filter can do; `another` is another picture of the film.
    """

    style_before: float
    style_recoloured: float
    style_after: float
    content_before: float
    content_after: float
    content_another: float


class Alone(Struct, frozen=True, kw_only=True):
    """Seconds for imports and weights, and for the work itself (the better of two); what the painting is worth."""

    start_s: float
    work_s: float
    losses: Losses


async def measure_alone(folder: Path, film: bytes, painted: bytes) -> Alone:
    """Do the same work in a child process; it cannot outlive this one. Raises AloneFailed, OSError."""
    files = [folder / name for name in ("film.mp4", "painted.mp4", "alone.json")]
    files[0].write_bytes(film)
    files[1].write_bytes(painted)
    log = folder / "alone.log"
    process = spawn(Command(argv=(sys.executable, "-P", "-m", __name__, *map(str, files)), log=log))
    try:
        status = await process.wait()
    finally:
        await process.kill()
    if status:
        raise AloneFailed(f"the work in one process failed: {' / '.join(last_lines(log, 3)) or f'status {status}'}")
    return msgspec.json.decode(files[2].read_bytes(), type=Alone)


def work(film: bytes) -> tuple[float, float]:
    """Split, paint and join here, twice; the seconds for the start, and for the work the better time."""
    began = time.perf_counter()
    split, stylize, join = (
        _imported(module, name) for module, name in (("split", "split"), ("stylize", "Stylize"), ("join", "join"))
    )
    stylize.loaded()
    start_s = time.perf_counter() - began
    took_s = []
    for _ in range(2):
        began = time.perf_counter()
        join([stylize(segment) for segment in split(film)])
        took_s.append(time.perf_counter() - began)
    return start_s, min(took_s)


def losses(before: bytes, after: bytes) -> Losses:
    """Measure pictures of the two films, which show the same at the same time."""
    import numpy as np
    import torch

    from algomesh_services.demo_video.films import pictures_of

    critics, painting = importlib.import_module("style_losses"), importlib.import_module("painting")
    pairs = list(zip(pictures_of(before), pictures_of(after), strict=False))
    chosen = pairs[:: max(1, len(pairs) // _MEASURED)]
    originals, painted = (
        torch.from_numpy(np.stack([pair[side] for pair in chosen])).permute(0, 3, 1, 2).float() / 255 for side in (0, 1)
    )
    model: Any = torch.from_numpy(painting.paint_picture()).permute(2, 0, 1)
    critic = critics.Critic(model)
    others = originals.roll(len(originals) // 2, dims=0)
    mine, theirs = critic.measure(painted, originals), critic.measure(others, originals)
    return Losses(
        style_before=float(critic.style(originals).mean()),
        style_recoloured=float(critic.style(critics.recoloured(originals, model)).mean()),
        style_after=float(mine.style.mean()),
        content_before=float(critic.content(originals, originals).mean()),
        content_after=float(mine.content.mean()),
        content_another=float(theirs.content.mean()),
    )


def _imported(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _main(film: str, painted: str, answer: str) -> None:
    sys.path[:0] = [str(_CATALOG / project) for project in _PROJECTS]
    content = Path(film).read_bytes()
    start_s, work_s = work(content)
    measured = losses(content, Path(painted).read_bytes())
    Path(answer).write_bytes(msgspec.json.encode(Alone(start_s=start_s, work_s=work_s, losses=measured)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
