"""What traces cost a warm chain of three: switched off, and on with 1 % of the traces sampled.

Each variant is a mesh and a client of its own; their rounds are interleaved, and a ratio is one of rounds that followed
one another. With ALGOMESH_BENCH_WITHOUT=FOLDER, a checkout from before there were traces, that is what "off" is
compared with: `git worktree add FOLDER COMMIT`. The collector is a process that takes everything and reads nothing.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.mesh import ROOT, Mesh

ROUNDS, CALLS = 40, 250
_PACKAGES = ("sdk", "broker", "services", "observability", ".")
_SINK = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Side:
    """One variant: its mesh, and its client, which waits to be told to go."""

    def __init__(self, stack: contextlib.ExitStack, environment: dict[str, str], build: Path | None = None) -> None:
        if build is not None:
            environment = {**environment, "PYTHONPATH": os.pathsep.join(str(build / name) for name in _PACKAGES)}
        mesh = stack.enter_context(Mesh(environment))
        mesh.cli("publish", str(ROOT / "services" / "catalog" / "demo.py"))
        self._client = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.telemetry_client"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment | mesh.environment,
            )
        )  # fmt: skip
        stack.callback(self._client.kill)
        self._say()
        self._pids = [mesh.server_pid, *(row["pid"] for row in mesh.cli("ps"))]

    def round(self) -> dict[str, float]:
        """Figures of one round."""
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps({"calls": CALLS, "pids": self._pids}) + "\n")
        self._client.stdin.flush()
        found: dict[str, float] = json.loads(self._say())
        return found

    def _say(self) -> str:
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        if not line:
            raise RuntimeError("the client has ended")
        return line


@contextlib.contextmanager
def _sink() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", _SINK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def run() -> dict[str, Any]:
    """Measure, show, and return the medians and the ratios."""
    before = os.environ.get("ALGOMESH_BENCH_WITHOUT", "")
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(_sink())
        on = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        }
        # Chosen, where a busy machine may make a mesh choose threads for one of its stages.
        inline = {"ALGOMESH_DISPATCH": "inline"}
        sides = {"without": Side(stack, inline, Path(before).absolute())} if before else {}
        sides |= {"off": Side(stack, inline), "1 %": Side(stack, inline | on)}
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(ROUNDS):
            names = list(sides) if number % 2 else list(reversed(sides))
            rounds.append({name: sides[name].round() for name in names})
    base = next(iter(sides))
    medians = {name: {key: figures.median([r[name][key] for r in rounds]) for key in rounds[0][name]} for name in sides}
    ratios = {
        name: {key: figures.median([r[name][key] / r[base][key] for r in rounds]) for key in rounds[0][name]}
        for name in sides
    }
    figures.table(
        f"Traces: a warm chain of 3, one caller; medians of {ROUNDS} interleaved rounds of {CALLS}",
        ["", "p50 ms", "CPU µs", f"p50 / {base}", f"CPU / {base}"],
        [
            [
                name, f"{medians[name]['p50_ms']:.3f}", f"{medians[name]['cpu_us']:.0f}",
                f"{ratios[name]['p50_ms']:.3f}", f"{ratios[name]['cpu_us']:.3f}",
            ]
            for name in sides
        ],
    )  # fmt: skip
    return {"medians": medians, "ratios": ratios}
