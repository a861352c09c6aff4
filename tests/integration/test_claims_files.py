"""Shared memory among uids that do not trust each other: what one of them leaves there harms nobody else."""

import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from algomesh_broker.claims_shm import LONGEST_TTL_S, SharedMemory, boot_clock_s
from algomesh_broker.errors import ClaimGone
from algomesh_broker.messages import Claim

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("needs_root")]

NOBODY = 65534
DATA = os.urandom(100_000)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Do it as another uid, as instances run."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def root() -> Iterator[Path]:
    """A mount of shared memory, or what passes for one: everybody may write, as in /dev/shm."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="algomesh-test-") as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


@pytest.fixture
def memory(root: Path) -> SharedMemory:
    memory = SharedMemory(root)
    assert memory.make_folder() == memory.make_folder() == memory.host(0)
    return memory


def put(memory: SharedMemory, data: bytes = DATA, ttl_s: float = 60.0) -> Claim:
    draft = memory.create(memory.host(0), ttl_s)
    draft.write(data)
    return draft.finish(memory.host(0), "k~somebody." + "0" * 32)


def planted(memory: SharedMemory, name: str, size_bytes: int = 100) -> Claim:
    path = memory._folder(0) / f"{'ab' * 16}-{int(boot_clock_s()) + 60:x}"
    return Claim(id=name, size_bytes=size_bytes, host=memory.host(0), path=str(path))


def test_both_uids_write_and_both_read(memory: SharedMemory) -> None:
    by_root = put(memory)
    with as_nobody():
        by_nobody = put(memory)
        assert bytes(memory.read(by_root)) == bytes(memory.read(by_nobody)) == DATA

    assert bytes(memory.read(by_nobody)) == DATA
    assert b"".join(memory.pieces(by_nobody)) == DATA


def test_only_what_root_or_oneself_wrote_is_mapped(memory: SharedMemory) -> None:
    by_root = put(memory)
    with as_nobody():
        by_nobody = put(memory)
        assert is_mapped(memory.read(by_root), by_root)
        assert is_mapped(memory.read(by_nobody), by_nobody)

    assert is_mapped(memory.read(by_root), by_root)
    assert not is_mapped(memory.read(by_root, copy=True), by_root)
    assert not is_mapped(memory.read(by_nobody), by_nobody)


def is_mapped(view: memoryview, claim: Claim) -> bool:
    assert isinstance(view.obj, mmap.mmap) == (claim.path in Path("/proc/self/maps").read_text())
    return isinstance(view.obj, mmap.mmap)


def test_a_writer_that_cuts_its_file_short_harms_no_reader(memory: SharedMemory) -> None:
    with as_nobody():
        claim = put(memory)
    had = memory.read(claim)
    pieces = memory.pieces(msgspec.structs.replace(claim))

    with as_nobody():
        Path(claim.path).chmod(0o644)
        os.truncate(claim.path, 10)
        Path(claim.path).chmod(0o444)

    assert bytes(had) == DATA
    with pytest.raises(ClaimGone):
        memory.read(claim)
    with pytest.raises(ClaimGone):
        list(pieces)


def test_a_file_cut_short_while_it_is_read_is_an_error_and_no_signal(memory: SharedMemory) -> None:
    with as_nobody():
        claim = put(memory, os.urandom(3 * 2**20))
    pieces = memory.pieces(claim)
    next(pieces)

    with as_nobody():
        Path(claim.path).chmod(0o644)
        os.truncate(claim.path, 10)

    with pytest.raises(ClaimGone, match="cut short"):
        list(pieces)


def test_nobody_lists_changes_or_removes_what_is_anothers(memory: SharedMemory) -> None:
    claim = put(memory)

    with as_nobody():
        for attempt in (
            lambda: list(memory._folder(0).iterdir()),
            lambda: Path(claim.path).unlink(),
            lambda: Path(claim.path).rename(memory._folder(0) / "mine"),
            lambda: Path(claim.path).write_bytes(b"x"),
            lambda: Path(claim.path).chmod(0o666),
            lambda: memory._folder(0).rename(memory.root / "mine"),
        ):
            with pytest.raises(PermissionError):
                attempt()
        assert memory.delete(claim) is False

    assert bytes(memory.read(claim)) == DATA


def test_nothing_is_readable_before_all_of_it_is_there(memory: SharedMemory) -> None:
    draft = memory.create(memory.host(0), 60.0)
    draft.write(DATA)
    claim = Claim(id="x", size_bytes=len(DATA), host=memory.host(0), path=draft._path)

    with pytest.raises(ClaimGone):
        memory.read(claim)
    draft.abandon()

    assert list(memory._folder(0).iterdir()) == []


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "folder", "private", "nothing"])
def test_what_is_no_claims_file_is_not_read(memory: SharedMemory, root: Path, kind: str) -> None:
    secret = root / "secret"
    secret.write_bytes(b"s" * 100)
    secret.chmod(0o444)
    claim = planted(memory, kind)
    path = Path(claim.path)
    if kind == "symlink":
        with as_nobody():
            path.symlink_to(secret)
    elif kind == "hard link":
        path.hardlink_to(secret)
    elif kind == "pipe":
        with as_nobody():
            os.mkfifo(path, 0o444)
    elif kind == "folder":
        path.mkdir(0o444)
    elif kind == "private":
        path.write_bytes(b"s" * 100)
        path.chmod(0o600)

    with pytest.raises(ClaimGone):
        memory.read(claim)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "{folder}/../secret", "{folder}/{name}/../{name}", "{folder}/x", "{name}", "{root}/{name}", "\0"],
)
def test_a_path_that_leads_elsewhere_is_not_followed(memory: SharedMemory, root: Path, path: str) -> None:
    claim = put(memory)
    (root / Path(claim.path).name).write_bytes(DATA)
    forged = path.format(folder=memory._folder(0), name=Path(claim.path).name, root=root)

    with pytest.raises(ClaimGone):
        memory.read(msgspec.structs.replace(claim, path=forged))
    assert memory.delete(msgspec.structs.replace(claim, path=forged)) is False


@pytest.mark.parametrize("kind", ["folder", "symlink"])
def test_a_folder_that_somebody_else_has_taken_is_not_used(root: Path, kind: str) -> None:
    memory = SharedMemory(root)
    with as_nobody():
        if kind == "folder":
            memory._folder(0).mkdir(0o1777)
        else:
            (root / "elsewhere").mkdir(0o1777)
            memory._folder(0).symlink_to(root / "elsewhere")

    with pytest.raises(OSError):  # noqa: PT011  # PermissionError, or what O_NOFOLLOW makes of a link
        memory.make_folder()
    with pytest.raises(OSError):  # noqa: PT011
        memory.create(memory.host(0), 60.0)


def test_sweeping_removes_what_is_over_or_no_claim_and_follows_nothing(memory: SharedMemory, root: Path) -> None:
    secret = root / "secret"
    secret.write_bytes(b"stays")
    fresh, over = put(memory), put(memory, ttl_s=1.0)
    folder = memory._folder(0)
    with as_nobody():
        (folder / "junk").write_bytes(b"x")
        (folder / f"{'cd' * 16}-{int(boot_clock_s()) + 10 * LONGEST_TTL_S:x}").write_bytes(b"for ever")
        (folder / f"{'ef' * 16}-{'f' * 30}").symlink_to(secret)
        (folder / "folder").mkdir()

    assert memory.sweep(boot_clock_s() + 5) == 4

    assert not Path(over.path).exists()
    assert bytes(memory.read(fresh)) == DATA
    assert secret.read_bytes() == b"stays"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["folder"]


def test_the_folder_may_be_written_by_all_and_listed_by_its_owner(memory: SharedMemory) -> None:
    assert stat.S_IMODE(memory._folder(0).stat().st_mode) == 0o1733
    assert SharedMemory(memory.root / "nowhere").machine == ""
    assert SharedMemory(memory.root / "nowhere").sweep() == 0
