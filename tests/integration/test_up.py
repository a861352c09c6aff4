"""`algomesh up`: what it says when ready, what it refuses, and that nothing is left of it."""

import os
import signal
import stat
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from algomesh import connect
from algomesh_broker.authorization import authorization_config
from algomesh_broker.credentials import ensure_secrets, public_key, read_seed
from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_services.local.postgres import Postgres
from algomesh_services.local.running import RunningMesh
from tests.conditions import is_alive, until
from tests.integration.up_fixtures import COMMAND, SHOUT, Up, alive, environment, run

pytestmark = pytest.mark.integration

KEY = "the administrators own key"
NASTY = """
import os, signal, time
from algomesh import algorithm

@algorithm("me/nasty", version="1.0.0", timeout=None)
def nasty(text: str) -> str:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        try:
            signal.signal(signum, signal.SIG_IGN)
        except ValueError:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signum])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("orphan of", text, flush=True)
            while True:
                time.sleep(1)
        os._exit(0)
    while True:
        time.sleep(1)
"""


@pytest.fixture(scope="class")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("up") / "state", "--key", KEY) as up:
        yield up


class TestWhileItRuns:
    def test_it_says_in_one_line_where_it_is_and_what_runs(self, up: Up) -> None:
        said = up.said

        assert set(said) == {"gateway", "nats", "key", "state", "pids", "metrics"}
        assert said["state"] == str(up.state)
        assert set(said["pids"]) == {
            "up", "nats-server", "postgres", "registry", "ledger", "prewarmer", "launcher", "gateway",
        }  # fmt: skip
        assert not [name for name, pid in said["pids"].items() if not is_alive(pid)]
        with urllib.request.urlopen(f"{said['gateway']}/healthz", timeout=5) as answer:
            assert answer.status == 200
        running = RunningMesh.find(up.state)
        assert running is not None
        assert (running.gateway, running.nats, running.pid) == (said["gateway"], said["nats"], up.process.pid)

    def test_no_secret_is_in_a_command_line_an_environment_or_a_log(self, up: Up) -> None:
        assert up.said["key"] == KEY
        assert up.run("ls").returncode == 0
        secrets = [KEY.encode(), (up.state / "postgres" / "passfile").read_bytes().strip().rpartition(b":")[2]]
        secrets += [path.read_bytes().strip() for path in (up.state / "secrets").glob("*.nk")]
        assert len(secrets) > 6

        shown = {path: path.read_bytes() for path in (up.state / "logs").rglob("*") if path.is_file()}
        for pid in up.family():
            for name in ("cmdline", "environ"):
                try:
                    shown[Path(f"/proc/{pid}/{name}")] = Path(f"/proc/{pid}/{name}").read_bytes()
                except OSError:  # it has just ended
                    continue
        leaks = [str(path) for path, content in shown.items() if any(secret in content for secret in secrets)]

        assert leaks == []
        private = [up.state / "secrets" / "admin.key", up.state / "run" / "mesh.json"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600, 0o600]

    def test_a_second_one_on_the_same_state_says_so_and_changes_nothing(self, up: Up) -> None:
        second = run("up", "--port", "0", "--state", str(up.state), "--key", "another key")

        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"pid {up.process.pid}" in second.stderr
        assert "already uses" in second.stderr
        assert (up.state / "secrets" / "admin.key").read_text().strip() == up.said["key"]
        assert up.run("ls").returncode == 0


async def test_the_address_and_what_was_published_outlive_it_and_the_key_stays(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(SHOUT)
    with Up(tmp_path / "state") as up:
        assert up.run("publish", str(tmp_path / "shout.py")).returncode == 0
        before = up.said

        up.stop()
        assert up.process.returncode == 0
        assert up.process.stdout is not None
        assert up.process.stdout.read() == ""
        assert RunningMesh.find(up.state) is None

    with Up(tmp_path / "state") as up:
        assert (up.said["nats"], up.said["key"]) == (before["nats"], before["key"])
        result = up.run("call", "me/shout", "still here")

        assert result.stdout == "STILL HERE\n", result.stderr


async def test_every_program_that_is_killed_is_back_at_its_address_and_calls_go_on(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(SHOUT)
    with Up(tmp_path / "state") as up:
        up.run("publish", str(tmp_path / "shout.py"))
        for name, pid in up.pids.items():
            if name != "up":
                os.kill(pid, signal.SIGKILL)

        def calls_again() -> bool:
            return up.run("call", "me/shout", "again", "--timeout", "10").stdout == "AGAIN\n"

        def answers_http() -> bool:
            request = urllib.request.Request(
                f"{up.said['gateway']}/mesh/v1/call/me/shout",
                data=b"http",
                headers={"Authorization": f"Bearer {up.said['key']}", "Content-Type": "text/plain"},
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return bool(answer.read() == b"HTTP")
            except OSError:
                return False

        await until(calls_again, 20)
        await until(answers_http, 20)


@pytest.mark.alone  # two seconds
async def test_a_call_is_answered_within_two_seconds_of_the_death_of_nats_server(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(SHOUT)
    with Up(tmp_path / "state") as up:
        up.run("publish", str(tmp_path / "shout.py"))
        async with connect(up.said["key"], url=up.said["nats"]) as client:
            shout = client.algo("me/shout")
            assert (await shout.pipe("before")).result == "BEFORE"

            began = time.monotonic()
            os.kill(up.pids["nats-server"], signal.SIGKILL)
            answer = await shout.pipe("after")

            # Typically 0.25 s: more only if the registry, which lets callers in, came back after them.
            assert answer.result == "AFTER"
            assert time.monotonic() - began < 2.0


@pytest.mark.alone  # five seconds
async def test_ctrl_c_stops_everything_in_five_seconds_whatever_an_algorithm_does(tmp_path: Path) -> None:
    with Up(tmp_path / "state") as up:
        await _start_nasty(up, tmp_path)
        family = up.family()
        assert len(family) > 9

        took_s = up.stop(signal.SIGINT)

        assert took_s < 5.0
        assert alive(family) == []
        assert alive(up.family()) == []


async def test_kill_9_leaves_no_process_behind(tmp_path: Path) -> None:
    with Up(tmp_path / "state") as up:
        await _start_nasty(up, tmp_path)
        family = up.family()

        up.kill()

        await until(lambda: not alive(family), 15)
        assert alive(up.family()) == []


def test_ports_and_states_that_cannot_be_used_are_one_line_each(tmp_path: Path, nats_port: int) -> None:
    (tmp_path / "file").write_text("")
    state = tmp_path / "state"

    taken = run("up", "--port", str(nats_port), "--state", str(state))
    file = run("up", "--port", "0", "--state", str(tmp_path / "file"))
    number = run("up", "--port", "99999", "--state", str(state))
    dsn = run("up", "--port", "0", "--state", str(state), "--postgres", "postgresql://me:pass-word@127.0.0.1:1/x")
    server = run("up", "--port", "0", "--state", str(state), "--nats", "nats://127.0.0.1:1")

    for result, words in (
        (taken, "is used by another program"),
        (file, "is not a directory"),
        (number, "is not a port"),
        (dsn, "cannot be used"),
        (server, "no NATS server answers"),
    ):
        assert result.returncode == 1, result
        assert words in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
    assert "pass-word" not in dsn.stderr


async def test_servers_that_it_did_not_start(tmp_path: Path, postgres_server: Postgres, postgres: str) -> None:
    (tmp_path / "shout.py").write_text(SHOUT)
    state = tmp_path / "state"
    printed = run("nats-config", "--state", str(state))
    assert printed.returncode == 0, printed.stderr
    folder = tmp_path / "foreign"
    password = postgres_server.passfile.read_text().strip().rpartition(":")[2]
    database = postgres.partition("/?")[0].rpartition("/")[2].partition("?")[0]
    dsn = f"postgresql://algomesh:{password}@/{database}?host={postgres_server.sockets}"
    config = NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run", extra=printed.stdout)
    async with NatsServer(config) as server:
        with Up(state, "--nats", server.url, "--postgres", dsn) as up:
            assert up.said["nats"] == server.url
            assert not {"nats-server", "postgres"} & set(up.pids)
            assert up.run("publish", str(tmp_path / "shout.py")).returncode == 0
            assert up.run("call", "me/shout", "elsewhere").stdout == "ELSEWHERE\n"
            for pid in up.family():
                shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                assert password.encode() not in shown, Path(f"/proc/{pid}/cmdline").read_bytes()
        assert server.is_running


async def test_a_foreign_server_that_does_not_know_the_mesh_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ensure_secrets(tmp_path / "other" / "secrets")
    extra = authorization_config(tmp_path / "other" / "secrets")
    config = NatsConfig(store_dir=tmp_path / "store", runtime_dir=tmp_path / "run", extra=extra)
    async with NatsServer(config) as server:
        result = run("up", "--port", "0", "--state", str(tmp_path / "state"), "--nats", server.url)

    assert result.returncode == 1
    assert "algomesh nats-config --state" in result.stderr
    assert result.stderr.count("\n") == 1


def test_nats_config_has_public_keys_only(tmp_path: Path) -> None:
    printed = run("nats-config", "--state", str(tmp_path)).stdout

    seed = read_seed(tmp_path / "secrets", "registry")
    public = public_key(seed)
    assert public in printed
    assert seed.decode() not in printed
    assert "auth_callout" in printed


def test_people_get_a_block_to_copy_and_ctrl_c_during_the_start_is_quiet(tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0", "--state", str(state)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(ALGOMESH_API_KEY="mine"), text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    while lines[-1] and not lines[-1].startswith("Ctrl-C"):
        lines.append(process.stdout.readline())
    text = "".join(lines)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)

    key = (state / "secrets" / "admin.key").read_text().strip()
    assert process.returncode == 0
    assert f"export ALGOMESH_API_KEY={key}" in text
    assert "export ALGOMESH_URL=nats://127.0.0.1:" in text
    assert "\x1b" not in text
    assert "Traceback" not in errors

    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0", "--state", str(state), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not any((state / "logs").glob("registry.log")) and time.monotonic() < deadline:
        time.sleep(0.01)
    while process.poll() is None and not _has_children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (output, errors) == ("", "")


@pytest.fixture
async def nats_port(nats_server: NatsServer) -> int:
    return nats_server.port


async def _start_nasty(up: Up, folder: Path) -> None:
    """Have an instance that ignores every polite signal, and an orphan of it in a session of its own."""
    (folder / "nasty.py").write_text(NASTY)
    published = up.run("publish", str(folder / "nasty.py"))
    assert published.returncode == 0, published.stderr
    call = subprocess.Popen(
        [*COMMAND, "call", "me/nasty", "ours"],
        env=environment(ALGOMESH_URL=up.said["nats"], ALGOMESH_API_KEY=up.said["key"]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: "orphan of ours" in up.run("logs", "me/nasty").stdout, 20)
    finally:  # the caller's going would cancel the run; it ends hard, as its terminal would
        call.kill()
        call.wait()


def _has_children(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
