"""A project's files as one deterministic archive: the same files give the same bytes and the same digest."""

import hashlib
import io
import os
import tarfile
from typing import Final, NamedTuple

from algomesh.errors import BadProject
from algomesh.project import Project

LARGEST_BYTES: Final = 2 * 2**30


class Archive(NamedTuple):
    """An uncompressed tar, and the sha-256 of it in hex."""

    data: bytes
    digest: str


def pack(project: Project) -> Archive:
    """Pack the project's files, sorted, without times, owners or permissions (but for what is a program).

    Raises BadProject.
    """
    try:
        total = sum((project.folder / file).stat().st_size for file in project.files)
    except OSError as error:
        raise BadProject(f"{error.filename} cannot be read: {error.strerror}") from error
    if total > LARGEST_BYTES:
        raise BadProject(
            f"{project.folder.name} has {total / 2**30:.1f} GiB; 2 GiB is the most. Exclude data and caches"
        )
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in project.files:
            try:
                data = (project.folder / file).read_bytes()
            except OSError as error:
                raise BadProject(f"{file} cannot be read: {error}") from error
            member = tarfile.TarInfo(file.as_posix())
            member.size = len(data)
            is_program = project.keeps_modes and os.access(project.folder / file, os.X_OK)
            member.mode = 0o755 if is_program else 0o644
            try:
                tar.addfile(member, io.BytesIO(data))
            except ValueError as error:
                raise BadProject(f"{file}: {error}") from error
    packed = out.getvalue()
    return Archive(packed, hashlib.sha256(packed).hexdigest())
