"""How long the images stay that the docker driver builds for versions, on a real engine."""

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from algomesh_broker.server import NatsServer
from algomesh_services.launcher.docker_built import BuiltImages, Retention
from algomesh_services.launcher.docker_driver import DockerDriver
from algomesh_services.launcher.docker_engine import Engine
from algomesh_services.launcher.docker_orphans import read_mesh
from algomesh_services.launcher.settings import DockerSettings, Settings
from tests.conditions import until
from tests.integration.docker_fixtures import BARE_IMAGE, docker, instance_image
from tests.integration.launcher_mesh import Mesh, pack_archive
from tests.integration.test_launcher import value

pytestmark = [pytest.mark.integration, pytest.mark.engine]

READS = """
from algomesh import algorithm
import pathlib
@algorithm("demo/reads", version="1.0.0", concurrency=1)
def main(x):
    return pathlib.Path("/made").read_text()
"""
DAY_S = 86_400.0
AT_ONCE = Retention(most=1, unused_s=0.0, unpublished_s=0.0)


class Bench:
    """Images of a mesh that has an engine and no launcher."""

    def __init__(self, engine: Engine, state: Path) -> None:
        self.engine, self.state, self.mesh = engine, state, secrets.token_hex(6)
        self.labels = {"org.algomesh.mesh": self.mesh}

    def built(self, retention: Retention, *published: str) -> BuiltImages:
        """As a launcher that begins sees them."""
        found = BuiltImages(self.engine, self.mesh, self.labels, self.state, retention)
        found.published = lambda: published
        return found

    def make(self, tag: str, digest: str, mesh: str = "") -> None:
        """An image like one that was built; nothing is run for it."""
        name = f"algomesh/{mesh or self.mesh}:{tag}"
        label = {"org.algomesh.mesh": mesh or self.mesh, "org.algomesh.digest": digest, "org.algomesh.test": self.mesh}
        options = [part for key, text in label.items() for part in ("--label", f"{key}={text}")]
        subprocess.run(
            ["docker", "build", "-q", "-t", name, *options, "-"],
            input=f"FROM {BARE_IMAGE}\n".encode(), env={**os.environ, "DOCKER_BUILDKIT": "0"},
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    async def used(self, tag: str, digest: str, at: float = 0.0) -> None:
        """Let a start of this version have taken it, now or at this time."""
        async with self.built(AT_ONCE).using(tag, digest):
            pass
        if at:
            os.utime(self.state / "images" / tag, (at, at))

    def tags(self) -> set[str]:
        """What is there."""
        names = docker(
            "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"label=org.algomesh.test={self.mesh}"
        )
        return {name.rpartition(":")[2] for name in names.split()}


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    instance_image()  # skips where there is no engine
    async with Engine() as engine:
        bench = Bench(engine, tmp_path)
        try:
            yield bench
        finally:
            names = docker("images", "-q", "--filter", f"label=org.algomesh.test={bench.mesh}").split()
            if names:
                docker("rmi", "-f", *set(names))


async def test_what_no_published_version_needs_is_removed_and_what_others_have_is_not(bench: Bench) -> None:
    bench.make("version-gone", "d1")
    bench.make("version-there", "d2")
    bench.make("requirements-shared", "d1")
    bench.make("version-of-another-mesh", "d1", mesh="other")
    await bench.used("requirements-shared", "d3")
    built = bench.built(Retention(unpublished_s=0.0), "d2", "d3")

    assert await built.prune() == ["version-gone"]
    assert bench.tags() == {"version-there", "requirements-shared", "version-of-another-mesh"}


async def test_an_empty_directory_is_taken_for_one_that_is_not_there_yet(bench: Bench) -> None:
    bench.make("version-a", "d1")

    assert await bench.built(Retention(unpublished_s=0.0)).prune() == []


async def test_those_used_last_are_kept_also_by_the_next_launcher(bench: Bench) -> None:
    later = time.time() + 10 * DAY_S  # than the images were made
    for number, days in enumerate((3, 1, 2)):
        bench.make(f"version-{number}", f"d{number}")
        await bench.used(f"version-{number}", f"d{number}", later - days * DAY_S)

    built = bench.built(Retention(most=1, unused_s=0.0), "d0", "d1", "d2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        removed = await built.prune()

    assert sorted(removed) == ["version-0", "version-2"]
    assert bench.tags() == {"version-1"}
    assert [path.name for path in (bench.state / "images").iterdir()] == ["version-1"]


async def test_one_that_a_start_is_about_to_take_stays_and_so_does_one_in_which_something_runs(bench: Bench) -> None:
    bench.make("version-starting", "d1")
    bench.make("version-running", "d2")
    name = f"algomesh-images-{bench.mesh}"
    docker("run", "-d", "--name", name, "--network", "none", f"algomesh/{bench.mesh}:version-running", "sleep", "60")
    try:
        built = bench.built(Retention(unpublished_s=0.0), "another")
        async with built.using("version-starting", "d1"):
            assert await built.prune() == []
        assert bench.tags() == {"version-starting", "version-running"}
    finally:
        docker("rm", "-f", name)

    built = bench.built(AT_ONCE, "another")
    assert sorted(await built.prune()) == ["version-running", "version-starting"]


async def test_an_engine_that_is_away_and_a_folder_that_cannot_be_read_are_logged_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("not a folder")
    async with Engine("unix:///nonexistent/docker.sock") as away:
        built = BuiltImages(away, "mesh", {}, tmp_path, AT_ONCE)
        with structlog.testing.capture_logs() as said:
            assert await built.prune() == []
            async with built.using("version-a", "d1"):
                pass

    assert [line["event"] for line in said] == ["images_not_pruned", "image_use_not_noted", "image_use_not_noted"]
    assert "does not answer" in said[0]["error"]


async def test_a_launcher_removes_the_image_of_what_was_replaced_and_builds_what_took_its_place(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    found = DockerSettings(image=instance_image(), network="host", nats_url=nats_server.url, project=tmp_path.name)

    def make(settings: Settings) -> DockerDriver:
        retention = Retention(unpublished_s=1.0, every_s=0.2)
        return DockerDriver(found, state=settings.state, launcher=settings.launcher, retention=retention)

    def archive(text: str) -> bytes:
        dockerfile = f"ARG ALGOMESH_IMAGE\nFROM ${{ALGOMESH_IMAGE}}\nRUN echo {text} >/made\n"
        return pack_archive({"algo_reads.py": READS, "Dockerfile": dockerfile})

    mesh_id = read_mesh(tmp_path / "state")
    try:
        async with Mesh(nats_server.url, tmp_path, make_driver=make, driver="docker", docker=found) as mesh:
            await mesh.begin()
            reads = await mesh.shelf.publish("demo/reads/1.0.0", "", archive=archive("first"))
            assert value(await mesh.caller(reads, 1, 120)) == "first\n"
            (first,) = images_of(mesh_id)

            await mesh.shelf.publish("demo/reads/1.0.0", "", archive=archive("second"))

            await until(lambda: first not in images_of(mesh_id), 30)
            assert value(await mesh.caller(reads, 1, 120)) == "second\n"
            (second,) = images_of(mesh_id)
            assert second != first
            label = '{{index .Config.Labels "org.algomesh.project"}}'
            assert docker("inspect", "-f", label, second) == tmp_path.name
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            docker("rmi", "-f", *images_of(mesh_id))


def images_of(mesh: str) -> list[str]:
    return docker(
        "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"label=org.algomesh.mesh={mesh}"
    ).split()
