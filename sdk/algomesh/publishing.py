"""Publishing a project: what holds a folder's algorithms is packed once, and each of them made callable.

A named pipeline has no archive: its JSON form is all there is to it. It may also come as a .json file. A folder with
`algomesh.toml` holds one algorithm in another language (foreign.py).

Nothing of the project is imported in this process: a child describes it. The archive travels in pieces, and a
registry that has it already (or half of it, after an upload that was cut off) is sent only what it lacks.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from algomesh.archive import Archive, pack
from algomesh.describe import describe
from algomesh.errors import BadProject, MeshError
from algomesh.foreign import is_foreign, read_foreign
from algomesh.naming import read_named
from algomesh.project import read_project
from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.platform import CHUNK_BYTES, Manifest, Publish, Published, Upload, Uploaded

_PIECE_WITHIN_S: Final = 30.0
_STUCK_AFTER: Final = 3


class Progress(Struct, frozen=True, kw_only=True):
    """Where a publish stands: `step` is reading, describing, uploading or publishing; bytes only while uploading."""

    step: str
    subject: str
    done_bytes: int = 0
    size_bytes: int = 0


Report = Callable[[Progress], None]


async def publish(connection: Connection, path: str | Path, *, report: Report | None = None) -> list[Published]:
    """Publish every algorithm of the project at `path`, in the order in which the code defines them, then pipelines.

    `report` hears of the steps. Raises BadProject, VersionExists with how to bump, PermissionDenied with the scope
    that is missing, BadInput or BadReference for a pipeline that cannot be, Unreachable. What was published before an
    error stays published; to publish again does no harm.
    """
    tell = report or _nobody
    place = Path(path)
    tell(Progress(step="reading", subject=place.name))
    if place.suffix == ".json":
        manifest = await asyncio.to_thread(_read_pipeline, place)
        return [await _publish(connection, manifest, _digest(manifest.pipeline), tell)]
    if is_foreign(place):
        project, described = await asyncio.to_thread(read_foreign, place)
        manifests = [described]
    else:
        project = await asyncio.to_thread(read_project, place)
        tell(Progress(step="describing", subject=", ".join(project.modules)))
        manifests = await asyncio.to_thread(describe, project)
    if not manifests:
        raise BadProject(f"{place.name} has no algorithm in it")
    digest = ""
    with_code = [manifest for manifest in manifests if not manifest.pipeline]
    if with_code:
        archive = await asyncio.to_thread(pack, project)
        digest = archive.digest
        await _upload(connection, with_code[0], archive, tell)
    return [
        await _publish(connection, manifest, _digest(manifest.pipeline) if manifest.pipeline else digest, tell)
        for manifest in manifests
    ]


async def publish_outside(connection: Connection, manifest: Manifest) -> Published:
    """Make a version callable that no launcher can start, since it has no code here: who attaches an instance runs it.

    Raises VersionExists where it is published with other content, PermissionDenied, BadProject, Unreachable.
    """
    digest = hashlib.sha256(platform.pack(manifest)).hexdigest()
    return await _publish(connection, manifest, digest, _nobody)


def _read_pipeline(file: Path) -> Manifest:
    try:
        return read_named(file.read_bytes()).manifest()
    except OSError as error:
        raise BadProject(f"{file.name} cannot be read: {error.strerror}") from error
    except MeshError as error:
        raise type(error)(f"{file.name}: {error.message}") from error


def _digest(pipeline: bytes) -> str:
    return hashlib.sha256(pipeline).hexdigest()


async def _upload(connection: Connection, manifest: Manifest, archive: Archive, tell: Report) -> None:
    """Send what the registry has not got; its answer to each piece says where to go on."""
    algorithm = f"{manifest.owner}/{manifest.name}"
    size = len(archive.data)
    offset = stuck = 0
    while True:
        tell(Progress(step="uploading", subject=algorithm, done_bytes=offset, size_bytes=size))
        piece = Upload(
            digest=archive.digest, size_bytes=size, offset=offset, data=archive.data[offset : offset + CHUNK_BYTES]
        )
        answer = await ask(connection, "registry", "upload", algorithm, piece, Uploaded, _PIECE_WITHIN_S)
        if answer.received_bytes >= size:
            return
        stuck = stuck + 1 if answer.received_bytes <= offset else 0
        if stuck > _STUCK_AFTER:
            raise BadProject(f"the registry does not take the archive of {algorithm} beyond {offset} bytes; try again")
        offset = answer.received_bytes


async def _publish(connection: Connection, manifest: Manifest, digest: str, tell: Report) -> Published:
    algorithm = f"{manifest.owner}/{manifest.name}"
    tell(Progress(step="publishing", subject=f"{algorithm}/{manifest.version}"))
    request = Publish(manifest=manifest, digest=digest)
    return await ask(connection, "registry", "publish", algorithm, request, Published, _PIECE_WITHIN_S)


def _nobody(_: Progress) -> None:
    """Report to nobody."""
