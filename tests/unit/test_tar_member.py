"""Members of archives are unpacked inside their folder or not at all, also where tarfile has no filter of its own."""

import os
import tarfile
from pathlib import Path

import pytest

from algomesh_services.launcher.tar_member import checked


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.uid, made.uname = kind, link, mode, 12345, "somebody"
    return made


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("/etc/passwd"),
        member("a/../../b"),
        member("link", tarfile.SYMTYPE, "../secret"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("a/link", tarfile.SYMTYPE, "../../b"),
        member("a/hard", tarfile.LNKTYPE, "../b"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda bad: f"{bad.name} {bad.linkname}",
)
def test_what_leads_outside_or_is_no_file_is_refused(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(tarfile.TarError):
        checked(bad, tmp_path)


def test_nothing_is_written_through_a_link_that_leads_outside(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "way").symlink_to(tmp_path)

    with pytest.raises(tarfile.TarError):
        checked(member("way/file"), inside)


@pytest.mark.parametrize(
    "good", [member("a/b.py"), member("a", tarfile.DIRTYPE), member("a/link", tarfile.SYMTYPE, "../b")]
)
def test_what_stays_inside_becomes_ours_and_loses_its_powers(good: tarfile.TarInfo, tmp_path: Path) -> None:
    good.mode = 0o6777

    found = checked(good, tmp_path)

    assert (found.uid, found.gid, found.uname) == (os.geteuid(), os.getegid(), "")
    assert not found.mode & 0o7022
