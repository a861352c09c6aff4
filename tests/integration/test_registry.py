"""The registry: publishing, archives, keys, and what it does when its servers go away."""

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from algomesh_broker import credentials, platform
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import Forbidden, Unauthenticated
from algomesh_broker.identity import Identity, key_id
from algomesh_broker.messages import AlgorithmEntry, VersionEntry
from algomesh_broker.names import Reference
from algomesh_broker.request_server import Refusal
from algomesh_services.registry.archives import Archives
from algomesh_services.registry.service import serve
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, Refused, ask, eventually, publish, running_mesh, upload

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, postgres) as mesh:
        yield mesh


@pytest_asyncio.fixture
async def admin(mesh: Mesh) -> Connection:
    return await mesh.admin()


class TestPublishing:
    async def test_a_version_can_be_resolved_by_everybody(self, mesh: Mesh, admin: Connection) -> None:
        caller = await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))
        directory = await Directory.open(caller)

        published = await publish(admin, "text/clean/1.0.0", timeout_s=7.0, attempts=2)
        await until(lambda: len(directory) == 1)

        version, entry = directory.resolve(Reference.parse("text/clean"))
        assert published == platform.Published(
            algorithm="text/clean", version="1.0.0", digest=hashlib.sha256(b"archive").hexdigest(), created=True
        )
        assert str(version) == "text/clean/1.0.0"
        assert (entry.timeout_s, entry.attempts, entry.digest) == (7.0, 2, published.digest)
        await directory.close()

    async def test_the_same_content_again_changes_nothing(self, admin: Connection) -> None:
        first = await publish(admin, "text/clean/1.0.0")

        again = await publish(admin, "text/clean/1.0.0")

        assert (first.created, again.created) == (True, False)

    async def test_other_content_is_refused_with_how_to_bump(self, admin: Connection) -> None:
        await publish(admin, "text/clean/1.0.0")
        await publish(admin, "text/clean/1.0.1")

        for changed in ({"data": b"other"}, {"concurrency": 8}):
            with pytest.raises(Refused, match=r"version to 1\.0\.2") as refused:
                await publish(admin, "text/clean/1.0.0", **dict[str, Any](changed))
            assert refused.value.code == "version_exists"

    async def test_what_the_environment_lacks_is_named(self, admin: Connection) -> None:
        with pytest.raises(Refused) as refused:
            await publish(admin, "text/clean/1.0.0", requirements=["msgspec", "no-such-package>=3", "msgspec>=999"])

        assert refused.value.code == "requirements_missing"
        assert "no-such-package>=3 is not installed" in refused.value.message
        assert "msgspec>=999 is required and" in refused.value.message
        assert "pip install 'no-such-package>=3' 'msgspec>=999'" in refused.value.message

    @pytest.mark.parametrize(
        ("reference", "fields", "code"),
        [
            ("platform/evil/1.0.0", {}, "name_reserved"),
            ("text/clean/1.0.0", {"entry": "not an entry"}, "bad_manifest"),
            ("text/clean/1.0.0", {"concurrency": 0}, "bad_manifest"),
            ("text/clean/1.0.0", {"timeout_s": float("nan")}, "bad_manifest"),
            ("text/clean/1.0.0", {"min_instances": 5, "max_instances": 4}, "bad_manifest"),
            ("text/clean/1.0.0", {"calls": ["text/clean/1.0.0"]}, "bad_manifest"),
            ("text/clean/1.0.0", {"preload": ["os; import sys"]}, "bad_manifest"),
            ("text/clean/1.0.0", {"requirements": ["???"]}, "bad_manifest"),
        ],
    )
    async def test_a_bad_manifest_is_refused(
        self, admin: Connection, reference: str, fields: dict[str, object], code: str
    ) -> None:
        with pytest.raises(Refused) as refused:
            await publish(admin, reference, **fields)  # type: ignore[arg-type]

        assert refused.value.code == code

    async def test_a_key_publishes_only_what_its_scopes_say(self, mesh: Mesh) -> None:
        author = await mesh.connect(Identity.of_key(await mesh.key("publish:text/*", "call:text/*")))

        await publish(author, "text/clean/1.0.0", calls=["text/lower"])
        with pytest.raises(Forbidden):
            await publish(author, "bank/secret/1.0.0")
        with pytest.raises(Refused, match="bank/secret") as refused:
            await publish(author, "text/thief/1.0.0", calls=["bank/secret"])

        assert refused.value.code == "permission_denied"

    async def test_a_manifest_of_another_algorithm_than_the_subjects_is_refused(self, admin: Connection) -> None:
        digest = await upload(admin, "text/clean", b"archive")
        manifest = platform.Manifest(owner="bank", name="secret", version="1.0.0", entry="m:f")

        wanted = platform.Publish(manifest=manifest, digest=digest)

        with pytest.raises(Refused) as refused:
            await ask(admin, "publish", wanted, platform.Published, algorithm="text/clean")

        assert refused.value.code == "bad_manifest"

    async def test_a_publish_without_its_archive_is_refused(self, admin: Connection) -> None:
        manifest = platform.Manifest(owner="text", name="clean", version="1.0.0", entry="m:f")

        wanted = platform.Publish(manifest=manifest, digest="0" * 64)

        with pytest.raises(Refused) as refused:
            await ask(admin, "publish", wanted, platform.Published, algorithm="text/clean")

        assert refused.value.code == "archive_missing"

    async def test_a_launcher_gets_manifest_and_archive(self, mesh: Mesh, admin: Connection) -> None:
        data = bytes(range(256)) * 5_000
        await publish(admin, "text/clean/1.0.0", data=data, concurrency=3)
        launcher = await mesh.program("launcher")

        stored = await ask(
            launcher,
            "manifest",
            platform.FetchManifest(version="1.0.0"),
            platform.StoredManifest,
            algorithm="text/clean",
        )
        fetched = b""
        while len(fetched) < len(data):
            wanted = platform.FetchArchive(digest=stored.digest, offset=len(fetched))
            fetched += (await ask(launcher, "archive", wanted, platform.ArchiveChunk)).data

        assert fetched == data
        assert stored.manifest.options.concurrency == 3
        with pytest.raises(Refused, match="never published"):
            await ask(
                launcher,
                "manifest",
                platform.FetchManifest(version="9.9.9"),
                platform.StoredManifest,
                algorithm="text/clean",
            )


class TestArchives:
    async def test_an_upload_goes_on_where_it_stopped(self, admin: Connection) -> None:
        data = b"x" * 1_000_000
        digest = hashlib.sha256(data).hexdigest()

        async def send(offset: int, piece: bytes) -> int:
            wanted = platform.Upload(digest=digest, size_bytes=len(data), offset=offset, data=piece)
            return (await ask(admin, "upload", wanted, platform.Uploaded, algorithm="a/b")).received_bytes

        assert await send(0, data[:400_000]) == 400_000
        assert await send(0, data[:400_000]) == 400_000  # sent twice, taken once
        assert await send(0, b"") == 400_000  # where was I?
        assert await send(700_000, data[700_000:]) == 400_000  # a piece is missing between
        assert await send(400_000, data[400_000:900_000]) == 900_000
        assert await send(900_000, data[900_000:]) == 1_000_000
        assert await send(0, b"") == 1_000_000

    async def test_bytes_that_are_not_their_digest_are_dropped(self, mesh: Mesh, admin: Connection) -> None:
        with pytest.raises(Refused) as refused:
            await upload(admin, "a/b", b"other", digest=hashlib.sha256(b"right").hexdigest())

        assert refused.value.code == "digest_mismatch"
        assert [path for path in mesh.settings.archives.rglob("*") if path.is_file()] == []

    async def test_one_callers_bad_pieces_do_not_spoil_anothers_upload(self, mesh: Mesh, admin: Connection) -> None:
        data = b"right"
        digest = hashlib.sha256(data).hexdigest()
        spoiler = await mesh.connect(Identity.of_key(await mesh.key("publish:a/*")))
        wanted = platform.Upload(digest=digest, size_bytes=5, offset=0, data=b"wro")
        await ask(spoiler, "upload", wanted, platform.Uploaded, algorithm="a/b")

        assert await upload(admin, "a/b", data) == digest

    @pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
    async def test_what_is_no_digest_is_refused(self, admin: Connection, digest: str) -> None:
        wanted = platform.Upload(digest=digest, size_bytes=1, offset=0, data=b"x")

        with pytest.raises(Refused) as refused:
            await ask(admin, "upload", wanted, platform.Uploaded, algorithm="a/b")

        assert refused.value.code == "bad_message"

    async def test_too_large_an_archive_is_refused_before_it_is_sent(self, admin: Connection) -> None:
        wanted = platform.Upload(digest="0" * 64, size_bytes=3 * 2**30, offset=0, data=b"x")

        with pytest.raises(Refused) as refused:
            await ask(admin, "upload", wanted, platform.Uploaded, algorithm="a/b")

        assert refused.value.code == "archive_too_large"

    async def test_a_disk_that_cannot_be_written_is_a_refusal(self, tmp_path: Path) -> None:
        archives = Archives(tmp_path / "archives", 1_000)
        archives.prepare()
        (tmp_path / "archives" / "partial").rmdir()

        with pytest.raises(Refusal) as refused:
            await archives.take(platform.Upload(digest="0" * 64, size_bytes=5, offset=0, data=b"x"), "k~a")

        assert refused.value.code == "storage_failed"

    def test_uploads_nobody_goes_on_with_are_dropped(self, tmp_path: Path) -> None:
        archives = Archives(tmp_path, 1_000)
        archives.prepare()
        (tmp_path / "partial" / "old").write_bytes(b"x")

        archives.prepare(now=time.time() + 2 * 86_400)

        assert list((tmp_path / "partial").iterdir()) == []


class TestKeys:
    async def test_a_created_key_is_shown_once_and_listed_without_itself(self, admin: Connection) -> None:
        wanted = platform.KeyCreate(name="laptop", scopes=["call:Text/*", "call:text/*", "observe"])
        created = await ask(admin, "key-create", wanted, platform.KeyCreated)

        rows = (await ask(admin, "key-list", platform.KeyList(), platform.KeyRows)).keys

        assert created.scopes == ["call:text/*", "observe"]
        assert [row.name for row in rows] == ["laptop", "administrator"]
        assert created.key not in str(rows)
        assert created.id == key_id(created.key)

    async def test_the_database_holds_no_key(self, mesh: Mesh, admin: Connection) -> None:
        key = await mesh.key("observe")
        connection = await asyncpg.connect(mesh.settings.postgres)
        rows = await connection.fetch("SELECT * FROM registry.keys")
        await connection.close()

        assert key.rpartition("_")[2].encode() not in str(rows).encode()

    @pytest.mark.parametrize(
        "scopes", [[], ["call"], ["call:"], ["call:a/b/1.0.0"], ["call:>"], ["call:*.*"], ["root"]]
    )
    async def test_a_scope_that_is_none_is_refused(self, admin: Connection, scopes: list[str]) -> None:
        with pytest.raises(Refused) as refused:
            await ask(admin, "key-create", platform.KeyCreate(name="x", scopes=scopes), platform.KeyCreated)

        assert refused.value.code == "bad_scope"

    async def test_a_name_in_use_is_refused(self, mesh: Mesh, admin: Connection) -> None:
        await mesh.key("observe", name="laptop")

        with pytest.raises(Refused) as refused:
            await mesh.key("observe", name="laptop")

        assert refused.value.code == "key_exists"

    async def test_a_revoked_key_is_refused_at_once_and_its_connections_are_closed(
        self, mesh: Mesh, admin: Connection
    ) -> None:
        key = await mesh.key("call:*", name="laptop")
        held = await mesh.connect(Identity.of_key(key))

        done = await ask(admin, "key-revoke", platform.KeyRevoke(key="laptop"), platform.Done)

        assert done.count == 1
        with pytest.raises(Unauthenticated):
            await mesh.connect(Identity.of_key(key))
        await until(lambda: not held.is_connected, 3.0)
        await held.close()
        with pytest.raises(Refused) as refused:
            await ask(admin, "key-revoke", platform.KeyRevoke(key="laptop"), platform.Done)
        assert refused.value.code == "unknown_key"

    async def test_another_administrators_key_ends_the_first(self, tmp_path: Path, postgres: str) -> None:
        async with running_mesh(tmp_path, postgres, with_registry=False) as mesh:
            async with mesh.registry():
                await (await mesh.admin()).close()
            credentials.ensure_admin_key(mesh.secrets, "correct horse")

            async with mesh.registry():
                await (await mesh.connect(Identity.of_key("correct horse"))).close()
                with pytest.raises(Unauthenticated):
                    await mesh.admin()


class TestWeather:
    async def test_a_restarted_registry_knows_everything_and_repairs_the_directory(
        self, tmp_path: Path, postgres: str
    ) -> None:
        async with running_mesh(tmp_path, postgres, with_registry=False) as mesh:
            async with mesh.registry():
                admin = await mesh.admin()
                key = await mesh.key("call:*")
                for number in range(3):
                    await publish(admin, f"text/clean/1.0.{number}")
                await publish(admin, "text/lower/1.0.0")
                store = await mesh.store("registry")
                # Somebody spoils the copy: one entry is gone, one is older, one was never published.
                await store.delete_entry("text", "lower")
                stale = AlgorithmEntry(owner="text", name="clean", versions=[VersionEntry(version="1.0.0")])
                ghost = AlgorithmEntry(owner="no", name="body", versions=[VersionEntry(version="1.0.0")])
                assert await store.put_entries([stale, ghost]) == 2

            async with mesh.registry():
                caller = await mesh.connect(Identity.of_key(key))
                directory = await Directory.open(caller)
                names = {entry.name: [version.version for version in entry.versions] for entry in directory.entries()}
                await directory.close()

        assert names == {"clean": ["1.0.0", "1.0.1", "1.0.2"], "lower": ["1.0.0"]}

    async def test_known_keys_connect_while_the_database_is_away(
        self, mesh: Mesh, admin: Connection, postgres_server: object, postgres: str
    ) -> None:
        key = await mesh.key("call:*")
        database = postgres.rpartition("/")[2].partition("?")[0]
        keeper = await asyncpg.connect(postgres_server.dsn)  # type: ignore[attr-defined]
        await keeper.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        await keeper.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)

        began = time.perf_counter()
        await mesh.connect(Identity.of_key(key))
        took_s = time.perf_counter() - began
        with pytest.raises(Refused) as refused:
            await ask(admin, "key-list", platform.KeyList(), platform.KeyRows)
        await keeper.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        await keeper.close()

        assert took_s < 0.2
        assert refused.value.code == "unavailable"

        async def is_back() -> bool:
            try:
                await ask(admin, "key-list", platform.KeyList(), platform.KeyRows)
            except Refused:
                return False
            return True

        await eventually(is_back, 10.0)

    async def test_two_registries_agree(self, mesh: Mesh, admin: Connection) -> None:
        async with mesh.registry():
            for _ in range(10):  # whichever of the two answers
                key = await mesh.key("call:*")
                await (await mesh.connect(Identity.of_key(key))).close()
                await ask(admin, "key-revoke", platform.KeyRevoke(key=key_id(key)), platform.Done)

                async def is_refused(key: str = key) -> bool:
                    try:
                        await (await mesh.connect(Identity.of_key(key))).close()
                    except Unauthenticated:
                        return True
                    return False

                await eventually(is_refused, 1.0)

    async def test_it_waits_for_its_servers_and_stops_while_it_waits(self, tmp_path: Path) -> None:
        async with running_mesh(tmp_path, "postgresql:///nowhere?host=/nonexistent", with_registry=False) as mesh:
            stopping = asyncio.Event()
            task = asyncio.create_task(serve(mesh.settings, stopping))
            await asyncio.sleep(0.3)
            assert not task.done()

            stopping.set()

            async with asyncio.timeout(2):
                await task

    async def test_everybody_is_back_after_the_server_was_killed(self, mesh: Mesh, admin: Connection) -> None:
        await publish(admin, "text/clean/1.0.0")
        caller = await mesh.connect(Identity.of_key(await mesh.key("call:*")))
        directory = await Directory.open(caller)

        await mesh.server.stop()
        began = time.perf_counter()
        await mesh.server.start()
        await until(lambda: caller.is_connected and admin.is_connected, 5.0)
        took_s = time.perf_counter() - began
        await publish(admin, "text/clean/1.1.0")
        await until(lambda: directory.resolve(Reference.parse("text/clean")).version.version.minor == 1)
        await directory.close()

        assert took_s < 2.0

    async def test_a_connection_of_a_session_that_ended_begins_another(self, tmp_path: Path, postgres: str) -> None:
        async with running_mesh(tmp_path, postgres, with_registry=False) as mesh:
            mesh.settings = dataclasses.replace(mesh.settings, session_s=2.0)
            async with mesh.registry():
                admin = await mesh.admin()
                lost = asyncio.Event()
                admin.on_disconnect.append(lost.set)
                back = asyncio.Event()
                admin.on_reconnect.append(back.set)

                async with asyncio.timeout(10):
                    await lost.wait()
                    await back.wait()
                await admin.close()

    async def test_strange_requests_are_survived(self, mesh: Mesh, admin: Connection) -> None:
        me = admin.identity.caller
        for payload in (b"", b"\xc1", b"\x93\xa3ask\xa3a.b\xa1c", b"[" * 1000, bytes(1000)):
            admin.publish(f"platform.registry.publish.a.b.{me}", payload)
        await admin.flush()

        with pytest.raises(Refused) as refused:
            await ask(admin, "publish", platform.KeyList(), platform.Published, algorithm="a/b")
        assert refused.value.code == "bad_message"
        assert (await ask(admin, "key-list", platform.KeyList(), platform.KeyRows)).keys
