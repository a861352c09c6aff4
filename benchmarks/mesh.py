"""A mesh for a benchmark: `algomesh up` on a state directory of its own, with projects published."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]


class Mesh:
    """`with Mesh() as mesh:` runs one; `mesh.environment` is what clients need."""

    def __init__(self, environment: dict[str, str] | None = None, state: Path | None = None) -> None:
        self._own = None if state else tempfile.TemporaryDirectory(prefix="algomesh-bench-")
        self.state = state or Path(self._own.name if self._own else "")
        self._extra = environment or {}
        self._process: subprocess.Popen[str] | None = None
        self.said: dict[str, Any] = {}
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "algomesh_services.cli",
            "up",
            "--port",
            "0",
            "--json",
            "--state",
            str(self.state),
        ]
        with (Path(tempfile.gettempdir()) / "algomesh-bench.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | self._extra
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("`algomesh up` did not start; see algomesh-bench.log in the temporary folder")
        self.said = json.loads(line)
        self.ready_s = time.perf_counter() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._own is not None:
            self._own.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """ALGOMESH_URL and ALGOMESH_API_KEY."""
        return {"ALGOMESH_URL": str(self.said["nats"]), "ALGOMESH_API_KEY": str(self.said["key"])}

    @property
    def server_pid(self) -> int:
        """The nats-server's process."""
        return int(next(pid for name, pid in self.said["pids"].items() if name.startswith("nats")))

    def cli(self, *arguments: str, timeout_s: float = 120) -> Any:
        """Run `algomesh ARGUMENTS --json` and return what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "algomesh_services.cli", *arguments, "--json"],
            check=False, capture_output=True, text=True, env=os.environ | self.environment, timeout=timeout_s,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"algomesh {' '.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None
