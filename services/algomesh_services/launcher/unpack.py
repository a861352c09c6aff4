"""Unpacks the archive of a version so that instances can read it, and nothing outside its folder is touched.

Everything here blocks; `bundles.py` calls it in a thread.
"""

import compileall
import os
import py_compile
import shutil
import tarfile
import uuid
from pathlib import Path

from algomesh_services.launcher.tar_member import extract

_MAX_MEMBERS = 200_000
_WRITE_BYTES = 16 * 2**20


class BadArchive(Exception):
    """An archive cannot be unpacked; the sentence says why."""


def unpack(archive: Path, target: Path, limit_bytes: int) -> int:
    """Unpack `archive` (tar, perhaps compressed) to `target`, which appears complete or not at all.

    Returns the size of what is in it. Raises BadArchive when a member is absolute, leads outside or is no file,
    folder or link, and when more than `limit_bytes` would come out; OSError when the disk refuses.
    """
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    draft.mkdir(mode=0o700, parents=True)
    try:
        size = _extract(archive, draft, limit_bytes)
        _compile(draft, target)
        _open_up(draft)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # somebody else was first otherwise
                raise
    except (tarfile.TarError, EOFError) as error:
        raise BadArchive(f"its archive cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return size


def folder_bytes(folder: Path) -> int:
    """The size of all files below `folder`; 0 for what has gone."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118  # thousands of files
            except OSError:
                continue
    return total


def remove(folder: Path) -> None:
    """Delete `folder`: first it has gone for everybody, then its files are deleted."""
    grave = folder.with_name(f".gone.{uuid.uuid4().hex}")
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


def clear_drafts(folder: Path) -> None:
    """Delete what an interrupted launcher left half done in `folder`."""
    for path in folder.glob(".*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _compile(folder: Path, target: Path) -> None:
    """Compile the code once, since instances cannot write here; what does not compile says so when it is imported."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH  # what lies here never changes
    compileall.compile_dir(folder, ddir=str(target), quiet=2, invalidation_mode=mode)


def _extract(archive: Path, folder: Path, limit_bytes: int) -> int:
    size = count = 0
    with tarfile.open(archive, "r:*") as tar:
        # Large writes: what is mapped by every cold start then lies in large pieces in the page cache.
        tar.copybufsize = _WRITE_BYTES  # type: ignore[attr-defined]  # documented, but unknown to typeshed
        for member in tar:
            size += member.size
            count += 1
            if size > limit_bytes or count > _MAX_MEMBERS:
                raise BadArchive(f"its archive holds more than {limit_bytes / 2**20:.0f} MiB or {_MAX_MEMBERS} files")
            if member.name.startswith("/"):  # tarfile's own filter would quietly make it relative
                raise BadArchive(f"its archive has the absolute path {member.name!r}")
            extract(tar, member, folder)
    return size


def _open_up(folder: Path) -> None:
    """Let every uid read; who may reach the folder at all is decided above it."""
    for root, _, files in os.walk(folder):
        os.chmod(root, 0o755)  # noqa: PTH101, S103  # thousands of files; an instance has another uid
        for name in files:
            path = os.path.join(root, name)  # noqa: PTH118
            if not os.path.islink(path):  # noqa: PTH114
                mode = os.stat(path).st_mode  # noqa: PTH116
                os.chmod(path, 0o755 if mode & 0o100 else 0o644)  # noqa: PTH101
