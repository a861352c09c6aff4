"""A mesh as a user runs it: `algomesh up` in a process of its own, and commands in others."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

from tests.conditions import is_alive, processes_with
from tests.forked import Forked

COMMAND = (sys.executable, "-m", "algomesh_services.cli")
READY_S = 60.0
SHOUT = """
from algomesh import algorithm

@algorithm("me/shout", version="1.0.0")
def shout(text: str) -> str:
    \"\"\"Capitals.\"\"\"
    print(f"shouting {text}")
    return text.upper()

@algorithm("me/double", version="1.0.0")
def double(number: float) -> float:
    return 2 * number

@algorithm("me/echo", version="1.0.0")
def echo(value):
    return value
"""


def environment(**more: str) -> dict[str, str]:
    """Ours, without what points at a mesh."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMESH_")}
    return {**clean, **more}


class Up:
    """`algomesh up --json` on `state`; ready when the block is entered, and gone when it is left."""

    def __init__(self, state: Path, *options: str, **variables: str) -> None:
        self.state = state
        self.options, self.variables = options, variables
        self.said: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--json", "--port", "0", "--state", str(self.state), *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**self.variables),
            text=True,
        )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_S)
        line = self.process.stdout.readline() if readable else ""
        if not line:
            self.kill()
            _, errors = self.process.communicate()
            raise AssertionError(f"`up` did not get ready: {errors}")
        self.said = json.loads(line)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    @property
    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = self.said["pids"]
        return pids

    def stop(self, signum: signal.Signals = signal.SIGINT) -> float:
        """Send a signal and wait for the end; how long that took."""
        began = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(20)
        return time.monotonic() - began

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def family(self) -> list[int]:
        """`up`, all below it, and whatever else knows the state directory."""
        return sorted({self.process.pid, *descendants(self.process.pid), *processes_with(str(self.state))})

    def run(self, *arguments: str, stdin: str | None = None, **more: str) -> "subprocess.CompletedProcess[str]":
        """One command of the command line against this mesh, as its administrator."""
        variables = {"ALGOMESH_URL": self.said["nats"], "ALGOMESH_API_KEY": self.said["key"], **more}
        return run_forked(*arguments, stdin=stdin, **variables)

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        result = self.run(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


def run_forked(*arguments: str, stdin: str | None = None, **more: str) -> "subprocess.CompletedProcess[str]":
    """`algomesh ARGUMENTS`, piped, without the half second of a fresh interpreter's imports."""
    given, writing = os.pipe()
    os.write(writing, (stdin or "").encode())
    os.close(writing)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            command = Forked.start(
                "algomesh_services.cli.main:main", *arguments,
                stdin=given, stdout=stdout.fileno(), stderr=stderr.fileno(), environment=environment(**more),
            )  # fmt: skip
        finally:
            os.close(given)
        try:
            status = command.wait(60)
        finally:
            command.kill()
        said = [_all_of(file) for file in (stdout, stderr)]
    return subprocess.CompletedProcess([*COMMAND, *arguments], status, *said)


def run(*arguments: str, stdin: str | None = None, **more: str) -> "subprocess.CompletedProcess[str]":
    """`algomesh ARGUMENTS`, piped, in a fresh interpreter."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=60,
        check=False,
    )


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def descendants(pid: int) -> list[int]:
    """All living processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue: list[int] = list(children.get(pid, []))
    while queue:
        one = queue.pop()
        found.append(one)
        queue += children.get(one, [])
    return found


def alive(pids: Sequence[int]) -> list[str]:
    """Those that still run, with their command lines."""
    return [f"{pid} {_command(pid)}" for pid in pids if is_alive(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
