"""The embedded nats-server: readiness, durability, ports, errors, and that it never outlives us."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import nats
import pytest

from algomesh_broker.program import Program
from algomesh_broker.server import (
    ANY_PORT,
    NatsConfig,
    NatsServer,
    ServerMissing,
    ServerPortInUse,
    ServerRefused,
    command,
    find_binary,
    render,
)
from tests.conditions import is_alive, until

pytestmark = pytest.mark.integration


def config_in(folder: Path, **options: object) -> NatsConfig:
    return NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run", log=folder / "nats.log", **options)  # type: ignore[arg-type]


async def greet_without_token(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_fresh_server_answers_clients_with_jetstream(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)

    await client.jetstream().add_stream(name="s", subjects=["s"])
    ack = await client.jetstream().publish("s", b"x" * 4_000_000)

    assert ack.seq == 1
    assert client.max_payload == 8 * 1024 * 1024
    await client.close()


async def test_a_killed_server_comes_back_at_the_same_port_with_what_it_acknowledged(tmp_path: Path) -> None:
    async with NatsServer(config_in(tmp_path)) as server:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(name="s", subjects=["s"])
        await client.jetstream().publish("s", b"kept")
        await client.close()
        url, pid = server.url, server.pid

        await server.kill()
        await server.start()

        assert server.url == url
        assert server.pid != pid
        client = await nats.connect(url)
        assert (await client.jetstream().get_msg("s", 1)).data == b"kept"
        await client.close()


async def test_restart_keeps_the_port(nats_server: NatsServer) -> None:
    url = nats_server.url

    await nats_server.restart()

    assert nats_server.url == url
    await (await nats.connect(url)).close()


async def test_monitoring_is_off_unless_asked_for_and_then_on_a_port_of_its_own(tmp_path: Path) -> None:
    async with NatsServer(config_in(tmp_path / "a")) as silent:
        assert silent.http_url is None
    async with NatsServer(config_in(tmp_path / "b", http_port=ANY_PORT)) as server:
        with urllib.request.urlopen(f"{server.http_url}/varz") as response:
            varz = json.load(response)

        assert varz["jetstream"]["config"]["sync_always"] is True
        assert varz["host"] == "127.0.0.1"


async def test_extra_configuration_is_obeyed_and_kept_private(tmp_path: Path) -> None:
    config = config_in(tmp_path, extra="authorization { token: sesame }")
    async with NatsServer(config) as server:
        await (await nats.connect(server.url, token="sesame")).close()

        assert b"Authorization Violation" in await greet_without_token(server.port)
        assert config.extra_path.stat().st_mode & 0o777 == 0o600
        assert config.config_path.stat().st_mode & 0o777 == 0o600
        assert "sesame" not in Path(f"/proc/{server.pid}/cmdline").read_text()


async def test_a_port_in_use_is_named(nats_server: NatsServer, tmp_path: Path) -> None:
    other = NatsServer(config_in(tmp_path / "other", port=nats_server.port))

    with pytest.raises(ServerPortInUse, match=rf"127\.0\.0\.1:{nats_server.port}.*another port") as caught:
        await other.start()

    assert caught.value.code == "port_in_use"
    assert not other.is_running


async def test_a_monitoring_port_in_use_is_named(nats_server: NatsServer, tmp_path: Path) -> None:
    with pytest.raises(ServerPortInUse, match=str(nats_server.port)):
        await NatsServer(config_in(tmp_path / "other", http_port=nats_server.port)).start()


async def test_nonsense_in_the_configuration_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    with pytest.raises(ServerRefused, match="nats-extra"):
        await NatsServer(config_in(tmp_path, extra="nonsense_option: {")).start()


async def test_a_store_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")

    with pytest.raises(ServerRefused):
        await NatsServer(config_in(tmp_path)).start()


async def test_strange_folder_names_are_quoted(tmp_path: Path) -> None:
    async with NatsServer(config_in(tmp_path / 'a "b" #c $d ü')) as server:
        await (await nats.connect(server.url)).close()


async def test_a_missing_binary_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algomesh_broker.server.importlib.metadata.files", lambda name: [])
    monkeypatch.setattr("algomesh_broker.server.sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    with pytest.raises(ServerMissing, match=r"pip install 'algomesh\[mesh\]'"):
        await NatsServer(config_in(tmp_path)).start()


def test_the_command_line_names_the_binary_and_the_configuration(tmp_path: Path) -> None:
    config = config_in(tmp_path)

    assert command(config) == [str(find_binary()), "--config", str(tmp_path / "run" / "nats.conf")]
    assert "sync_interval: always" in render(config)


async def test_a_stopped_server_leaves_no_process(tmp_path: Path) -> None:
    server: Program = NatsServer(config_in(tmp_path))
    await server.start()
    pid = server.pid
    assert pid is not None

    await server.stop()

    assert not is_alive(pid)
    assert server.pid is None


PARENT = """
import asyncio, pathlib, sys
from algomesh_broker.server import NatsConfig, NatsServer

async def main():
    folder = pathlib.Path(sys.argv[1])
    async with NatsServer(NatsConfig(store_dir=folder / "store", runtime_dir=folder)) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_server_dies_with_a_killed_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())

        os.kill(parent.pid, signal.SIGKILL)

        await until(lambda: not is_alive(pid), 1)
