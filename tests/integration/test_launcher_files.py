"""What the launcher does on disk: unpacking archives, keeping bundles within bounds, reading logs."""

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsServer
from algomesh_services.asking import Programs, Refused
from algomesh_services.launcher import log_reader, unpack
from algomesh_services.launcher.bundles import BadArchive, Bundles
from tests.integration.launcher_mesh import Mesh, pack_archive

pytestmark = pytest.mark.integration

MIB = 2**20


def write_archive(path: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(content) if member.isfile() else None)
    return path


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: int = 0o600
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, mode
    return info


# Unpacking


def test_an_archive_is_unpacked_whole_and_readable_by_everybody(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        archive = tmp_path / "a.tar"
        archive.write_bytes(pack_archive({"algo.py": "x = 1\n", "weights/w.bin": "abc"}))

        size = unpack.unpack(archive, tmp_path / "versions" / "d1", MIB)
    finally:
        os.umask(old)

    folder = tmp_path / "versions" / "d1"
    assert size == 9
    assert (folder / "weights/w.bin").read_text() == "abc"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "weights").stat().st_mode & 0o777 == 0o755
    assert (folder / "algo.py").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in folder.parent.iterdir()] == ["d1"]


@pytest.mark.parametrize(
    "bad",
    [
        member("/etc/passwd"),
        member("../outside"),
        member("sub/../../outside"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.SYMTYPE, "../../secrets"),
        member("hard", tarfile.LNKTYPE, "../../secrets"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
def test_what_leads_out_of_its_folder_is_refused_and_leaves_nothing(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    archive = write_archive(tmp_path / "a.tar", member("good.py"), bad)

    with pytest.raises(BadArchive):
        unpack.unpack(archive, tmp_path / "versions" / "d1", MIB)

    assert list((tmp_path / "versions").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar", member("big", size=4 * MIB), content=bytes(4 * MIB))
    assert archive.stat().st_size < MIB // 4

    with pytest.raises(BadArchive, match="more than 1 MiB"):
        unpack.unpack(archive, tmp_path / "versions" / "d1", MIB)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"no archive at all", pack_archive({"a": "b" * 10_000})[:-20]):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(BadArchive):
            unpack.unpack(tmp_path / "a.tar", tmp_path / "versions" / "d1", MIB)


def test_unpacking_what_is_there_already_changes_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(pack_archive({"algo.py": "x = 1\n"}))

    for _ in range(2):
        unpack.unpack(archive, tmp_path / "versions" / "d1", MIB)

    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["d1"]


# Bundles


@pytest_asyncio.fixture
async def shelf(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(nats_server.url, tmp_path) as mesh:
        yield mesh


@pytest_asyncio.fixture
async def make_bundles(shelf: Mesh, tmp_path: Path) -> AsyncIterator[Callable[[int], Bundles]]:
    identity = Identity("platform~launcher", "_INBOX.launcher")
    made: list[Bundles] = []
    async with await Connection.open(shelf.settings.nats_url, identity) as connection:
        programs = Programs(connection)

        def make(limit_bytes: int) -> Bundles:
            made.append(Bundles(programs, tmp_path / "versions", limit_bytes))
            return made[-1]

        yield make
        for bundles in made:
            await bundles.close()


async def test_manifest_and_archive_are_fetched_once_for_all_who_ask(
    shelf: Mesh, make_bundles: Callable[[int], Bundles]
) -> None:
    version = await shelf.shelf.publish("demo/big/1.0.0", "", archive=pack_archive({"w": os.urandom(1_500_000).hex()}))
    bundles = make_bundles(64 * MIB)
    await bundles.open()

    found = await asyncio.gather(*(bundles.prepare(version) for _ in range(10)))

    assert len({bundle.folder for bundle in found}) == 1
    assert len((found[0].folder / "w").read_text()) == 3_000_000
    assert shelf.shelf.asked["manifest"] == 1
    size = len(shelf.shelf.archives[found[0].digest])
    assert shelf.shelf.asked["archive"] == -(-size // (512 * 1024)) > 1


async def test_the_least_recently_used_version_is_dropped_but_never_one_in_use(
    shelf: Mesh, make_bundles: Callable[[int], Bundles], tmp_path: Path
) -> None:
    names = ("a", "b", "c", "d")
    versions = [
        await shelf.shelf.publish(f"demo/{name}/1.0.0", "", archive=pack_archive({"w": name * 400_000}))
        for name in names
    ]
    bundles = make_bundles(MIB)
    await bundles.open()
    a, b = [await bundles.prepare(version) for version in versions[:2]]
    bundles.in_use = lambda: {a.digest}

    c = await bundles.prepare(versions[2])
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {a.digest, c.digest}
    await bundles.prepare(versions[0])

    again = await bundles.prepare(versions[1])
    assert again == b
    assert (again.folder / "w").is_file()


async def test_a_new_launcher_finds_what_is_unpacked_and_clears_what_is_half_done(
    shelf: Mesh, make_bundles: Callable[[int], Bundles], tmp_path: Path
) -> None:
    version = await shelf.shelf.publish("demo/a/1.0.0", "")
    first = make_bundles(MIB)
    await first.open()
    bundle = await first.prepare(version)
    (tmp_path / "versions" / ".half.done").mkdir()
    (tmp_path / "versions" / ".fetched.x").touch()

    second = make_bundles(MIB)
    await second.open()

    assert await second.prepare(version) == bundle
    assert shelf.shelf.asked["archive"] == 1
    assert [path.name for path in (tmp_path / "versions").iterdir()] == [bundle.digest]


async def test_a_version_that_changed_is_asked_for_again(shelf: Mesh, make_bundles: Callable[[int], Bundles]) -> None:
    version = await shelf.shelf.publish("demo/a/1.0.0", "x = 1\n")
    bundles = make_bundles(MIB)
    await bundles.open()
    old = await bundles.prepare(version)
    await shelf.shelf.publish("demo/a/1.0.0", "x = 2\n")

    bundles.forget(version, old.digest)
    assert (await bundles.prepare(version)).digest == old.digest
    bundles.forget(version, "another digest")

    assert (await bundles.prepare(version)).digest != old.digest


async def test_an_unknown_version_is_refused_and_a_digest_that_is_none_never_becomes_a_path(
    shelf: Mesh, make_bundles: Callable[[int], Bundles]
) -> None:
    bundles = make_bundles(MIB)
    await bundles.open()

    with pytest.raises(Refused, match=r"has no 1\.0\.0"):
        await bundles.prepare(VersionId.parse("demo/none/1.0.0"))


# Logs

VERSION = VersionId.parse("demo/talks/1.0.0")


def write_log(logs: Path, instance: str, text: str, *, rotated: bool = False, at: float | None = None) -> Path:
    path = log_reader.log_path(logs, VERSION, instance)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_name(f"{path.name}.1") if rotated else path
    target.write_bytes(text.encode(errors="surrogateescape"))
    if at is not None:
        os.utime(target, (at, at))
    return path


def test_lines_of_all_instances_come_in_the_order_of_their_time(tmp_path: Path) -> None:
    write_log(tmp_path, "h-1", "1000000001.000 r1 one\n1000000003.000 - three\n")
    write_log(tmp_path, "h-2", "1000000002.500 r2 two\n")

    lines = log_reader.read_lines(tmp_path, "demo/talks")

    assert [(line.at, line.instance, line.run, line.line) for line in lines] == [
        (1000000001.0, "h-1", "r1", "one"),
        (1000000002.5, "h-2", "r2", "two"),
        (1000000003.0, "h-1", "", "three"),
    ]


def test_raw_lines_have_the_time_of_the_line_before_them_and_stay_in_order(tmp_path: Path) -> None:
    write_log(tmp_path, "h-1", "1000000001.000 r1 one\nraw \udcff bytes\n\n1000000002.000 r1 \n")

    lines = log_reader.read_lines(tmp_path, "demo/talks")

    assert [(line.at, line.run, line.line) for line in lines] == [
        (1000000001.0, "r1", "one"),
        (1000000001.0, "", "raw \ufffd bytes"),
        (1000000001.0, "", ""),
        (1000000002.0, "r1", ""),
    ]


def test_only_the_last_lines_are_given_also_across_a_cut(tmp_path: Path) -> None:
    write_log(tmp_path, "h-1", "".join(f"10000000{n}.000 - {n}\n" for n in range(10, 20)), rotated=True)
    write_log(tmp_path, "h-1", "".join(f"10000000{n}.000 - {n}\n" for n in range(20, 25)))

    lines = log_reader.read_lines(tmp_path, "demo/talks", count=7)

    assert [line.line for line in lines] == [str(n) for n in range(18, 25)]


def test_a_run_and_a_version_are_picked_out(tmp_path: Path) -> None:
    write_log(tmp_path, "h-1", "1000000001.000 r1 one\n1000000002.000 r2 two\n" * 1000)

    assert {line.line for line in log_reader.read_lines(tmp_path, "demo/talks", run="r2", count=50)} == {"two"}
    assert len(log_reader.read_lines(tmp_path, "demo/talks", run="r2", count=50)) == 50
    assert log_reader.read_lines(tmp_path, "demo/talks", version="2.0.0") == []
    assert log_reader.read_lines(tmp_path, "demo/none") == []


def test_an_answer_is_bounded_however_much_was_printed(tmp_path: Path) -> None:
    write_log(tmp_path, "h-1", ("x" * 100_000 + "\n") * 300)

    lines = log_reader.read_lines(tmp_path, "demo/talks", count=10_000)

    assert 0 < sum(len(line.line) for line in lines) <= 2 * MIB


def test_the_line_for_the_launcher_is_not_shown(tmp_path: Path) -> None:
    write_log(tmp_path, "h-1", '1000000001.000 - ALGOMESH-FAILED {"code":"load_failed","message":"m"}\n')

    assert log_reader.read_lines(tmp_path, "demo/talks") == []


def test_old_logs_are_deleted_but_not_those_of_the_living(tmp_path: Path) -> None:
    for number in range(30):
        write_log(tmp_path, f"h-{number}", "x\n", at=1_000_000 + number)
    write_log(tmp_path, "h-0", "x\n", rotated=True)

    log_reader.prune(log_reader.version_folder(tmp_path, VERSION), live={"h-1"})

    left = {path.name for path in log_reader.version_folder(tmp_path, VERSION).iterdir()}
    assert left == {"h-1.log", *(f"h-{number}.log" for number in range(10, 30))}
