"""The embedded PostgreSQL: made once, private, durable over kills, typed errors, and gone when we are."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import pytest

from algomesh_services.local import postgres_binaries
from algomesh_services.local.errors import DatabaseFailed, DatabaseInUse, DatabaseVersion
from algomesh_services.local.postgres import Postgres
from algomesh_services.local.postgres_binaries import DATABASE_UID, find_installation
from tests.conditions import is_alive, processes_with, until

pytestmark = pytest.mark.integration


async def query(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def server_in(folder: Path) -> Postgres:
    return Postgres(folder, is_durable_at_birth=False)


async def test_every_test_has_an_empty_database(postgres: str) -> None:
    count = await query(postgres, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")

    assert count == 0


async def test_the_server_is_small_durable_and_listens_on_no_port(tmp_path: Path) -> None:
    async with server_in(tmp_path) as server:
        connection = await asyncpg.connect(server.dsn)
        rows = await connection.fetch("SELECT name, setting FROM pg_settings")
        await connection.close()
    settings = {row["name"]: row["setting"] for row in rows}

    assert settings["fsync"] == settings["synchronous_commit"] == settings["full_page_writes"] == "on"
    assert settings["listen_addresses"] == ""
    assert settings["password_encryption"] == "scram-sha-256"
    assert settings["server_encoding"] == "UTF8"
    assert settings["max_connections"] == "60"


async def test_the_password_stands_in_the_passfile_alone(postgres_server: Postgres) -> None:
    password = postgres_server.passfile.read_text().strip().rpartition(":")[2]
    pid = postgres_server.pid

    assert len(password) >= 32
    assert postgres_server.passfile.stat().st_mode & 0o777 == 0o600
    assert password not in postgres_server.dsn
    assert pid not in processes_with(password)
    for log in postgres_server.directory.glob("*.log"):
        assert password not in log.read_text()
    wrong = postgres_server.dsn.partition("&passfile")[0].replace("algomesh@", "algomesh:wrong@")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


async def test_the_socket_folder_is_ours_alone(postgres_server: Postgres) -> None:
    assert postgres_server.sockets.stat().st_mode & 0o777 == 0o700


async def test_data_survive_a_stop_a_kill_and_an_immediate_shutdown(tmp_path: Path) -> None:
    server = server_in(tmp_path)
    async with server:
        await query(server.dsn, "CREATE TABLE facts (fact int)")
        for number, end in enumerate((server.stop, server.kill, server.kill), start=1):
            await query(server.dsn, f"INSERT INTO facts VALUES ({number})")
            await end()
            await server.start()
        await query(server.dsn, "INSERT INTO facts VALUES (4)")
        server.signal(signal.SIGQUIT)
        await server.wait()
        await server.start()

        assert await query(server.dsn, "SELECT array_agg(fact ORDER BY fact) FROM facts") == [1, 2, 3, 4]


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_later_start_is_quick(tmp_path: Path, end: str) -> None:
    async with server_in(tmp_path) as server:
        took_s = []
        for _ in range(3):
            await getattr(server, end)()
            began = time.monotonic()
            await server.start()
            took_s.append(time.monotonic() - began)

        assert min(took_s) < 1.0  # 0.05 s (0.1 s after a kill) where nobody else wants the processor


async def test_stop_does_not_wait_for_clients(tmp_path: Path) -> None:
    async with server_in(tmp_path) as server:
        pid = server.pid
        assert pid is not None
        connection = await asyncpg.connect(server.dsn)
        sleep = asyncio.create_task(connection.fetchval("SELECT pg_sleep(60)"))

        await server.stop()

        assert not is_alive(pid)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InternalClientError, OSError)):
            await sleep
        connection.terminate()


async def test_the_pid_of_another_process_in_a_stale_file_does_not_matter(tmp_path: Path) -> None:
    async with server_in(tmp_path) as server:
        await server.kill()
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

        await server.start()

        assert await query(server.dsn, "SELECT 1") == 1


async def test_what_a_killed_server_has_left_is_waited_for(tmp_path: Path) -> None:
    async with server_in(tmp_path) as server:
        connection = await asyncpg.connect(server.dsn)
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        os.kill(backend, signal.SIGSTOP)  # so that it does not notice
        server.signal(signal.SIGKILL)
        await server.wait()
        asyncio.get_running_loop().call_later(0.5, os.kill, backend, signal.SIGCONT)

        await server.start()

        assert not is_alive(backend)
        connection.terminate()
        connection = await asyncpg.connect(server.dsn)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_a_second_server_on_the_same_data_is_refused(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("algomesh_services.local.postgres._PREDECESSOR_S", 0.1)

    with pytest.raises(DatabaseInUse, match=rf"pid {postgres_server.pid}\)"):
        await Postgres(postgres_server.directory).start()


async def test_data_of_another_major_version_are_refused(tmp_path: Path) -> None:
    async with server_in(tmp_path) as server:
        await server.stop()
    (tmp_path / "data" / "PG_VERSION").write_text("15\n")

    with pytest.raises(DatabaseVersion, match=r"PostgreSQL 15, and PostgreSQL 18.* pg_dump .*--state") as caught:
        await server.start()

    assert caught.value.code == "database_version"


async def test_a_broken_configuration_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    async with server_in(tmp_path) as server:
        await server.stop()
        with (tmp_path / "data" / "postgresql.conf").open("a") as file:
            file.write("nonsense = 1\n")

        with pytest.raises(DatabaseFailed, match="PostgreSQL did not start"):
            await server.start()


async def test_an_initdb_cut_short_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    (tmp_path / "passfile").write_text("old")

    async with server_in(tmp_path) as server:
        assert await query(server.dsn, "SELECT 1") == 1
        assert not (tmp_path / "data.new").exists()


async def test_a_long_path_gets_a_short_folder_for_its_socket(tmp_path: Path) -> None:
    async with server_in(tmp_path / ("long" * 30)) as server:
        try:
            assert await query(server.dsn, "SELECT 1") == 1
            assert len(str(server.sockets)) < 90
            assert server.sockets.stat().st_mode & 0o777 == 0o700
        finally:
            await server.stop()
            server.sockets.rmdir()


async def test_a_strange_path_works(tmp_path: Path) -> None:
    async with server_in(tmp_path / "a b'c%d&e=ü") as server:
        assert await query(server.dsn, "SELECT 1") == 1


async def test_where_namespaces_are_refused_root_runs_it_under_another_uid(tmp_path: Path, needs_root: None) -> None:
    installation = await find_installation(may_use_namespace=False)
    server = Postgres(tmp_path, installation=installation, is_durable_at_birth=False)

    async with server:  # below a folder of mode 0700, which that uid cannot enter
        status = Path(f"/proc/{server.pid}/status").read_text()

        assert await query(server.dsn, "SELECT 1") == 1
        assert re.search(rf"Uid:\t{DATABASE_UID}\t{DATABASE_UID}", status)

    async with server_in(tmp_path) as again:  # and the other way takes the same data over
        assert await query(again.dsn, "SELECT 1") == 1


async def test_another_uid_gets_a_copy_of_binaries_it_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_root: None
) -> None:
    package, version = postgres_binaries._find_package()
    for name in (package.name, f"{package.name}.libs"):
        (tmp_path / name).symlink_to(package.with_name(name))  # a way through a folder of mode 0700
    monkeypatch.setattr(postgres_binaries, "_find_package", lambda: (tmp_path / package.name, version))
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o755)
        installation = await find_installation(may_use_namespace=False, cache=Path(cache))
        again = await find_installation(may_use_namespace=False, cache=Path(cache))
        assert installation.bin.is_relative_to(cache)
        assert again == installation

        async with Postgres(tmp_path / "data", installation=installation, is_durable_at_birth=False) as server:
            assert await query(server.dsn, "SELECT 1") == 1


PARENT = """
import asyncio, pathlib, sys
from algomesh_services.local.postgres import Postgres

async def main():
    async with Postgres(pathlib.Path(sys.argv[1]), is_durable_at_birth=False) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_everything_dies_with_a_killed_parent_and_the_next_start_recovers(tmp_path: Path) -> None:
    server = server_in(tmp_path)
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS fact")
        backends = [row["pid"] for row in await connection.fetch("SELECT pid FROM pg_stat_activity")]

        os.kill(parent.pid, signal.SIGKILL)

        await until(lambda: not any(map(is_alive, [pid, *backends])), 2)
        connection.terminate()
    async with server:
        assert await query(server.dsn, "SELECT fact FROM kept") == 7
