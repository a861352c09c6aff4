"""`make compose-down`, after a launcher with the docker driver was killed in the middle of its work."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import algomesh
from tests.compose.engine import IMAGE, PROJECT, Mesh, docker, say, until

pytestmark = pytest.mark.integration

MADE, ITS = f"label=org.algomesh.project={PROJECT}", f"label=com.docker.compose.project={PROJECT}"
ROOT = Path(__file__).resolve().parents[2]
BUILDS = f"FROM {IMAGE}-worker:a\nRUN true\n"


@pytest.fixture
def killed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    """A mesh whose launcher was killed and is not coming back, while it had an instance."""
    mesh.tag, mesh.scale = "a", 1
    for name, value in mesh.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ALGOMESH_DRIVER", "docker")
    monkeypatch.setenv("COMPOSE_PROFILES", "docker")
    try:
        mesh.up()
        with algomesh.client(mesh.key, mesh.urls[0], timeout=60) as client:
            assert client.algo("text/clean").pipe("What  a day").result
        mesh.compose("stop", "keeper", "keeper-too")
        docker("kill", *mesh.containers("launcher", running=True))
        until(lambda: not mesh.containers("launcher", running=True), "the launcher is down", 10)
        build(PROJECT)
        yield mesh
    finally:
        mesh.remove()


@pytest.fixture
def neighbour() -> Iterator[str]:
    """Another mesh's container, with the labels of its own."""
    name = f"{PROJECT}-neighbour"
    label = ["--label", f"org.algomesh.project={name}", "--label", "org.algomesh.mesh=other"]
    docker("run", "-d", "--name", name, "--network", "none", *label, "python:3.11-slim", "sleep", "600")
    build(name)
    try:
        yield name
    finally:
        docker("rm", "-f", name)
        docker("rmi", "-f", *found("images", f"label=org.algomesh.project={name}"))


def test_nothing_is_left_but_named_volumes_and_with_v_not_even_these(killed: Mesh, neighbour: str) -> None:
    assert found("ps", MADE, "-a"), "the killed launcher has left no instance"
    assert found("volume ls", MADE)

    make_down()

    assert found("ps", ITS, "-a") + found("ps", MADE, "-a") + found("network ls", ITS) + found("volume ls", MADE) == []
    assert f"{PROJECT}_vault" in found("volume ls", ITS)
    assert found("images", MADE), "what took long to build is kept for the next up"

    make_down("-v")

    assert found("volume ls", ITS) + found("images", MADE) == []
    assert docker("inspect", "-f", "{{.State.Running}}", neighbour).strip() == "true"
    assert found("images", f"label=org.algomesh.project={neighbour}")


def make_down(arguments: str = "") -> None:
    command = ["make", "--no-print-directory", "-C", str(ROOT), "compose-down", f"ARGS={arguments}"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    say(f"make compose-down {arguments}: done")


def found(what: str, label: str, *options: str) -> list[str]:
    """The names of volumes, the ids of all else."""
    return docker(*what.split(), "-q", *options, "--filter", label).split()


def build(project: str) -> None:
    """An image that carries the label of those that are built for versions."""
    command = ["docker", "build", "-q", "--label", f"org.algomesh.project={project}", "-"]
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    subprocess.run(command, input=BUILDS.encode(), env=environment, check=True, capture_output=True, timeout=60)
