"""Compose and Docker's engine as the tests use them: commands, waiting for what must become true, and facts."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose"
PROJECT = "algomesh-compose-test"
IMAGE = "algomesh-compose-test"
# Those that stay up; `init` and `catalog` end by themselves.
SERVICES = (
    *("nats", "postgres", "registry", "ledger", "prewarmer", "launcher", "gateway", "front"),
    *("keeper", "keeper-too"),
)
_began = time.monotonic()


class CommandFailed(AssertionError):
    """A command of compose or docker ended with an error; what it said is in the text."""


def say(text: str) -> None:
    """One line of progress, with the time since the beginning."""
    sys.stdout.write(f"\n[{time.monotonic() - _began:5.0f} s] {text}")
    sys.stdout.flush()


def until(is_so: Callable[[], bool], what: str, within_s: float) -> float:
    """Wait for a condition; how long it took, in seconds. Raises AssertionError."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < within_s, f"{what}: not so within {within_s:g} s"
        time.sleep(0.1)
    return time.monotonic() - began


def docker(*arguments: str, within_s: float = 60.0) -> str:
    """What a docker command prints. Raises CommandFailed."""
    return _run(["docker", *arguments], dict(os.environ), within_s)


def logs(container: str, lines: str = "all") -> str:
    """What a container has written, to either of its two outputs."""
    command = ["docker", "logs", "--tail", lines, container]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace")


class Mesh:
    """One mesh of this project, on free ports; `tag` is the version that `up` brings up."""

    def __init__(self) -> None:
        self.tag = "a"
        self.http, self.nats = (f"{_free_port()}" for _ in range(2))
        self.scale = 1
        self.key = ""
        self.ready_after_s = 0.0

    @property
    def urls(self) -> tuple[str, str]:
        """Where callers reach it: directly, and over HTTP."""
        return f"nats://127.0.0.1:{self.nats}", f"http://127.0.0.1:{self.http}"

    def compose(self, *arguments: str, within_s: float = 300.0) -> str:
        """What a compose command prints. Raises CommandFailed."""
        return _run([str(COMPOSE / "compose"), *arguments], os.environ | self.environment(), within_s)

    def environment(self) -> dict[str, str]:
        """The variables that make it this mesh and no other."""
        return {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "ALGOMESH_IMAGE": IMAGE,
            "ALGOMESH_FRONT_TAG": "test",
            "ALGOMESH_TAG": self.tag,
            "ALGOMESH_HTTP_PORT": self.http,
            "ALGOMESH_NATS_PORT": self.nats,
        }

    def build(self) -> None:
        """Build the three images; what an earlier run left up is removed first."""
        self.remove()
        say("building the images")
        began = time.monotonic()
        self.compose("build", "init", "registry", "front", within_s=720)
        say(f"built in {time.monotonic() - began:.0f} s")

    def up(self) -> None:
        """Bring it up and wait until every container is well and the catalog is published."""
        began = time.monotonic()
        self.compose("up", "-d", "--scale", f"gateway={self.scale}", "--no-build")
        self.until_whole(within_s=60.0)
        self.ready_after_s = time.monotonic() - began
        until(lambda: self.has_ended("catalog"), "the catalog is published", 180)
        assert self.facts(self.containers("catalog"))[0]["State"]["ExitCode"] == 0, "the catalog was not published"
        self.key = self.compose("exec", "-T", "registry", "cat", "/var/lib/algomesh/secrets/admin.key").strip()
        say(f"up: ready after {self.ready_after_s:.1f} s, the catalog published after {time.monotonic() - began:.0f} s")

    def remove(self) -> None:
        """Take everything down, volumes too. Images stay: they are the next run's cache."""
        _run([str(COMPOSE / "down"), "-v", "--timeout", "10"], os.environ | self.environment(), 300.0)

    def containers(self, *services: str, running: bool = False) -> list[str]:
        """The ids of the containers of these services (none: of all), the running ones only where wished."""
        found = []
        for service in services or ("",):
            label = f"com.docker.compose.service={service}" if service else "com.docker.compose.service"
            project = f"label=com.docker.compose.project={PROJECT}"
            options = ["-q"] if running else ["-aq"]
            found += docker("ps", *options, "--no-trunc", "--filter", project, "--filter", f"label={label}").split()
        return found

    def facts(self, containers: Iterable[str]) -> list[dict[str, Any]]:
        """What the engine knows of these containers."""
        ids = list(containers)
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids)) if ids else []
        return found

    def has_ended(self, service: str) -> bool:
        """Whether a one-shot service is over."""
        return all(facts["State"]["Status"] == "exited" for facts in self.facts(self.containers(service)))

    def unwell(self) -> dict[str, str]:
        """The services that are not up, or not well; how they are instead."""
        found = dict.fromkeys(SERVICES, "missing")
        for facts in self.facts(self.containers()):
            service = facts["Config"]["Labels"]["com.docker.compose.service"]
            if service in SERVICES:
                health = facts["State"].get("Health", {}).get("Status", "none")
                state = facts["State"]["Status"]
                found[service] = "" if (state, health) == ("running", "healthy") else f"{state}, {health}"
        return {service: how for service, how in found.items() if how}

    def until_whole(self, within_s: float) -> float:
        """Wait until everything is up and well."""
        last: dict[str, str] = {}

        def is_whole() -> bool:
            nonlocal last
            last = self.unwell()
            return not last

        try:
            return until(is_whole, "every container is well", within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; {last}") from None

    def show_logs(self, lines: int = 25) -> None:
        """The last lines of every container, for who reads why a test failed."""
        for facts in self.facts(self.containers()):
            state = facts["State"]
            say(f"---- {facts['Name']}: {state['Status']}, exit code {state['ExitCode']}")
            sys.stdout.write("\n" + logs(facts["Id"], str(lines)))


def drop_images(tag: str) -> None:
    """Forget what was built under this tag, if it was."""
    names = [f"{IMAGE}:{tag}", f"{IMAGE}-worker:{tag}"]
    subprocess.run(["docker", "rmi", *names], capture_output=True, check=False)


def _run(command: list[str], environment: dict[str, str], within_s: float) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, timeout=within_s, check=False, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise CommandFailed(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
