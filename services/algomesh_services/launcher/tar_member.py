"""One member of an archive, unpacked so that nothing outside a folder is touched.

tarfile's filter `data` does it where it is known: Python before 3.11.4, which Debian 12 has, lacks it.
"""

import os
import tarfile
from pathlib import Path


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Unpack `member` below `folder`. Raises tarfile.TarError for one that leads outside or is no plain file, folder
    or link; OSError."""
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, folder, filter="data")
    else:
        tar.extract(checked(member, folder), folder)


def checked(member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """The member as it may be unpacked: ours, and without powers. Raises tarfile.ExtractError."""
    root = os.path.realpath(folder)
    _refuse_outside(member.name, os.path.join(root, member.name), root)  # noqa: PTH118 - strings, as tarfile has them
    if member.issym() or member.islnk():
        if os.path.isabs(member.linkname):  # noqa: PTH117
            raise tarfile.ExtractError(f"{member.name!r} is a link to an absolute path")
        # A symbolic link is read from where it lies, a hard link from the top of the archive.
        start = os.path.dirname(member.name) if member.issym() else ""  # noqa: PTH120
        _refuse_outside(member.name, os.path.join(root, start, member.linkname), root)  # noqa: PTH118
    elif not (member.isreg() or member.isdir()):
        raise tarfile.ExtractError(f"{member.name!r} is no file, folder or link")
    member.mode = (member.mode & 0o755 | 0o600) if not member.isdir() else 0o755
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
    return member


def _refuse_outside(name: str, path: str, root: str) -> None:
    real = os.path.realpath(path)
    if os.path.isabs(name) or (real != root and not real.startswith(root + os.sep)):  # noqa: PTH117
        raise tarfile.ExtractError(f"{name!r} leads outside the folder it is unpacked to")
