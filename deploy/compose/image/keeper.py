"""Starts again what was killed from outside.

Docker's restart policies bring back a program that crashed or ran out of memory, but not one that somebody ended with
`docker kill`, which counts as a wish. In this mesh it counts as an accident: containers with the label `algomesh.keep`
that die by SIGKILL are started again, unless they were asked to stop first (`docker stop`, `compose down`, `compose
up` with another version). Two of these run, so that each is there for the other.

It speaks to Docker's engine over its socket, which is as much as being root on the machine: so this program has no
network, no capability, no writable file, and imports the standard library only.
"""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

SOCKET: Final = os.environ.get("DOCKER_SOCKET", "/var/run/docker.sock")
READY: Final = Path(os.environ.get("ALGOMESH_READY_FILE", "/run/algomesh/ready"))
PROJECT, SERVICE, KEEP = "com.docker.compose.project", "com.docker.compose.service", "algomesh.keep"
KILLED: Final = 137
# A stop that was asked for takes at most this long; a SIGKILL that follows it is part of it.
STOPPING_S: Final = 120.0
TRIES, PAUSE_S, AWAY_S, SILENCE_S = 5, 0.5, 1.0, 1.0


class Engine(http.client.HTTPConnection):
    """Docker's engine, over its socket. `timeout` in seconds; raises OSError, HTTPException."""

    def __init__(self, timeout: float = 30.0) -> None:
        super().__init__("docker", timeout=timeout)

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def ask(method: str, path: str) -> tuple[int, Any]:
    """One request: the status and, where there is one, the JSON of the answer."""
    engine = Engine()
    try:
        engine.request(method, path)
        answer = engine.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else None
    finally:
        engine.close()


def own_project() -> str:
    """The compose project that this container belongs to. Raises OSError, KeyError."""
    _, found = ask("GET", f"/containers/{quote(socket.gethostname())}/json")
    return str(found["Config"]["Labels"][PROJECT])


def filters(project: str, **more: list[str]) -> str:
    """The query that asks for kept containers of this project only."""
    return urlencode({"filters": json.dumps({"label": [f"{PROJECT}={project}", KEEP], **more})})


def killed_meanwhile(project: str) -> Iterator[tuple[str, str]]:
    """Containers that were killed within the last minute, before anybody listened: ids and names of services."""
    _, rows = ask("GET", f"/containers/json?all=1&{filters(project, status=['exited'])}")
    for row in rows:
        _, found = ask("GET", f"/containers/{row['Id']}/json")
        ended = datetime.fromisoformat(found["State"]["FinishedAt"][:19] + "+00:00").timestamp()
        if found["State"]["ExitCode"] == KILLED and time.time() - ended < 60:
            yield row["Id"], row["Labels"].get(SERVICE, "")


def start(container: str, service: str) -> None:
    """Start it, trying a few times."""
    for _ in range(TRIES):
        status, answer = ask("POST", f"/containers/{container}/start")
        if status in (204, 304):
            say("started_again", service=service, container=container[:12])
            return
        if status in (404, 409):  # removed, or about to be
            return
        say("not_started", service=service, status=status, error=(answer or {}).get("message", ""))
        time.sleep(PAUSE_S)


def follow(project: str) -> None:
    """Hear what happens to the containers and act, until the engine ends the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as events:
        events.connect(SOCKET)
        # In HTTP 1.0 the answer is the bare events, without chunks, and it may be waited for with a time.
        query = filters(project, type=["container"], event=["kill", "die"])
        events.sendall(f"GET /events?{query} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        for container, service in killed_meanwhile(project):
            start(container, service)
        asked: dict[str, float] = {}
        for event in heard(events):
            act(event, asked)


def heard(events: socket.socket) -> Iterator[Mapping[str, Any]]:
    """The events as they come, one JSON object a line below the answer's head; meanwhile it is shown that we live."""
    pending = b""
    while True:
        READY.touch()
        if not select.select([events], [], [], SILENCE_S)[0]:
            continue
        piece = events.recv(65536)
        if not piece:
            return
        *whole, pending = (pending + piece).split(b"\n")
        for line in whole:
            if line.startswith(b"{"):
                yield json.loads(line)


def act(event: Mapping[str, Any], asked: dict[str, float]) -> None:
    """Start what died by SIGKILL without having been asked to stop; `asked` remembers who was."""
    container, facts, now = event["Actor"]["ID"], event["Actor"]["Attributes"], time.monotonic()
    for known in [known for known, at in asked.items() if now - at > STOPPING_S]:
        del asked[known]
    if event["Action"] == "kill":
        if str(facts.get("signal")) in ("2", "15"):
            asked[container] = now
    elif facts.get("exitCode") == str(KILLED) and asked.pop(container, None) is None:
        start(container, facts.get(SERVICE, ""))


def say(event: str, **facts: object) -> None:
    """One line of JSON, as the mesh's programs write them."""
    sys.stdout.write(json.dumps({"event": event, "program": "keeper", **facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Keep the mesh until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    project, said = "", ""
    while True:
        try:
            if not project:
                project = own_project()
                say("ready", project=project)
            follow(project)
            said = ""
        except (OSError, KeyError, ValueError, http.client.HTTPException) as error:
            with contextlib.suppress(OSError):
                READY.unlink(missing_ok=True)
            if str(error) != said:
                said = str(error)
                say("engine_away", error=said)
            time.sleep(AWAY_S)


if __name__ == "__main__":
    main()
