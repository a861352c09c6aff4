"""The docker driver on a real engine: what its containers may do, where files and images come from, what fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from algomesh_broker import messages
from algomesh_broker.server import NatsServer
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.docker_driver import DockerDriver
from algomesh_services.launcher.settings import DockerSettings, Settings
from tests.conditions import until
from tests.integration.docker_fixtures import BARE_IMAGE, docker, instance_image, labelled
from tests.integration.launcher_mesh import GIB, Mesh, pack_archive
from tests.integration.test_launcher import error, value

pytestmark = [pytest.mark.integration, pytest.mark.engine]

LOOK = """
import json, os, pathlib
@algorithm("demo/look", version="1.0.0")
def main(x):
    def may_write(path):
        try:
            pathlib.Path(path, "probe").write_text("x")
        except OSError as error:
            return error.strerror
        return "yes"
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    processes = "".join(
        path.read_bytes().decode(errors="replace") for path in pathlib.Path("/proc").glob("[0-9]*/environ")
    )
    return {
        "root": may_write("/usr"), "code": may_write("."), "tmp": may_write("/tmp"),
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16), "privileges": status["NoNewPrivs"],
        "token": "ai_" in processes, "files": sorted(path.name for path in pathlib.Path().glob("*.py")),
        "pids": int(pathlib.Path("/sys/fs/cgroup/pids/pids.max").read_text())
        if os.path.exists("/sys/fs/cgroup/pids/pids.max") else int(open("/sys/fs/cgroup/pids.max").read()),
    }
"""
READS = """
import pathlib
@algorithm("demo/reads", version="1.0.0")
def main(x):
    return pathlib.Path(x).read_text()
"""
HEAD = "from algomesh import algorithm\n"

Begin = Callable[..., Any]


@pytest_asyncio.fixture
async def begin(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Begin]:
    """Opens a mesh whose launcher has the docker driver with these settings."""

    @asynccontextmanager
    async def opened(gpus: tuple[str, ...] = (), **options: Any) -> AsyncIterator[Mesh]:
        capacity = Capacity(max_instances=20, memory_bytes=64 * GIB, gpus=gpus)
        found = DockerSettings(**{"image": instance_image(), "network": "host", "nats_url": nats_server.url, **options})

        def make(settings: Settings) -> DockerDriver:
            return DockerDriver(found, state=settings.state, launcher=settings.launcher)

        async with Mesh(
            nats_server.url, tmp_path, make_driver=make, driver="docker", docker=found, capacity=capacity
        ) as mesh:
            await mesh.begin()
            yield mesh
        assert labelled(f"org.algomesh.launcher={mesh.settings.launcher}") == []
        assert docker("volume", "ls", "-q", "--filter", f"label=org.algomesh.launcher={mesh.settings.launcher}") == ""

    yield opened


async def test_a_container_has_no_power_no_secret_in_its_environment_and_nothing_to_write(begin: Begin) -> None:
    async with begin() as mesh:
        look = await mesh.shelf.publish("demo/look/1.0.0", LOOK)

        seen = value(await mesh.caller(look, 1, 60))

        assert seen == {
            "root": "Read-only file system", "code": "Read-only file system", "tmp": "yes",
            "capabilities": 0, "privileges": "1", "token": False, "files": ["algo_look.py", "code.py"], "pids": 512,
        }  # fmt: skip


async def test_labels_say_what_a_container_is(begin: Begin) -> None:
    async with begin() as mesh:
        look = await mesh.shelf.publish("demo/look/1.0.0", LOOK)
        await mesh.caller(look, 1, 60)

        (container,) = labelled(f"org.algomesh.launcher={mesh.settings.launcher}")
        asked = "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}{{.Name}} {{json .Config.Env}} {{json .Args}}"
        told = docker("inspect", "-f", asked, container)

        instance = f"{mesh.settings.launcher}-1"
        assert f"org.algomesh.instance={instance}" in told
        assert "org.algomesh.version=demo/look/1.0.0" in told
        assert "org.algomesh.reason=1 parked call" in told
        assert f"/algomesh-{instance} " in told
        assert "ai_" not in told


@pytest.mark.parametrize("how", ["path", "volume"])
async def test_the_launchers_own_folder_of_versions_can_be_seen_by_the_engine(
    begin: Begin, tmp_path: Path, how: str
) -> None:
    instance_image()
    folder = tmp_path / "state" / "versions"
    folder.mkdir(parents=True)
    for parent in (*folder.parents, folder):
        if parent.is_relative_to(tmp_path.parent.parent):
            parent.chmod(0o755)
    name = f"algomesh-driver-{tmp_path.name}".lower()
    if how == "volume":
        options = ["-o", "type=none", "-o", "o=bind", "-o", f"device={folder}"]
        docker("volume", "create", "--driver", "local", *options, name)
    try:
        async with begin(versions=str(folder) if how == "path" else name) as mesh:
            look = await mesh.shelf.publish("demo/look/1.0.0", LOOK)

            seen = value(await mesh.caller(look, 1, 60))

            assert seen["files"] == ["algo_look.py", "code.py"]
            assert seen["code"] == "Read-only file system"
    finally:
        if how == "volume":
            docker("volume", "rm", name)


async def test_a_version_that_brings_a_dockerfile_runs_in_the_image_that_is_built_of_it(begin: Begin) -> None:
    dockerfile = "ARG ALGOMESH_IMAGE\nFROM ${ALGOMESH_IMAGE}\nRUN echo made for it >/made\n"
    archive = pack_archive({"algo_reads.py": HEAD + READS, "Dockerfile": dockerfile})
    async with begin() as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", "", archive=archive)

        made = value(await mesh.caller(reads, "/made", 120))

    assert made == "made for it\n"
    assert len(images_built_for("demo/reads/1.0.0")) == 1


async def test_a_dockerfile_that_fails_is_told_with_what_it_printed(begin: Begin) -> None:
    dockerfile = "ARG ALGOMESH_IMAGE\nFROM ${ALGOMESH_IMAGE}\nRUN echo no compiler here; exit 3\n"
    archive = pack_archive({"algo_reads.py": HEAD + READS, "Dockerfile": dockerfile})
    async with begin() as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", "", archive=archive)

        code, message = error(await mesh.caller(reads, "/made", 120))

        assert code == "load_failed"
        assert "the image of demo/reads/1.0.0 cannot be built" in message
        assert "no compiler here" in message


async def test_requirements_are_installed_above_the_launchers_image(begin: Begin) -> None:
    async with begin() as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", READS, requirements=["msgspec>=0.1"])

        assert value(await mesh.caller(reads, "code.py", 120)) == ""

    assert len(images_built_for("demo/reads/1.0.0")) == 1


async def test_an_image_that_cannot_be_had_is_named_with_what_to_do(begin: Begin) -> None:
    async with begin() as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", READS, image="127.0.0.1:1/no/such:1")

        code, message = error(await mesh.caller(reads, 1, 60))

        assert code == "load_failed"
        assert "the image 127.0.0.1:1/no/such:1 is not here and cannot be pulled" in message


async def test_an_image_without_algomesh_says_so(begin: Begin) -> None:
    async with begin() as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", READS, image=BARE_IMAGE)

        code, message = error(await mesh.caller(reads, 1, 60))

        assert code == "load_failed"
        assert f"the image {BARE_IMAGE} does not hold algomesh" in message


async def test_an_engine_that_is_away_is_told_after_a_few_tries(begin: Begin) -> None:
    async with begin(host="unix:///nonexistent/docker.sock") as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", READS)

        code, message = error(await mesh.caller(reads, 1, 60))

        assert code == "load_failed"
        assert "the Docker engine at unix:///nonexistent/docker.sock does not answer" in message
        assert "start it, or set DOCKER_HOST" in message


async def test_a_version_with_a_gpu_asks_the_engine_for_it(begin: Begin) -> None:
    if "nvidia" in docker("info", "-f", "{{json .Runtimes}}"):
        pytest.skip("needs a Docker engine without NVIDIA's runtime")
    async with begin(gpus=("0",)) as mesh:
        reads = await mesh.shelf.publish("demo/reads/1.0.0", READS, gpu=1.0)

        code, message = error(await mesh.caller(reads, 1, 60))

        assert code == "load_failed"
        assert 'could not select device driver "nvidia"' in message
        assert "needs the NVIDIA container toolkit" in message


async def test_the_engine_may_be_behind_a_proxy(begin: Begin) -> None:
    async with socket_proxy() as port, begin(host=f"tcp://127.0.0.1:{port}") as mesh:
        look = await mesh.shelf.publish("demo/look/1.0.0", LOOK)

        assert value(await mesh.caller(look, 1, 60))["tmp"] == "yes"


@asynccontextmanager
async def socket_proxy() -> AsyncIterator[int]:
    """A TCP port that leads to the engine's socket, each direction ending by itself."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection("/var/run/docker.sock")
        await asyncio.gather(copy(reader, back), copy(there, writer))
        for each in (back, writer):
            each.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_container_that_somebody_removes_is_a_crash(begin: Begin) -> None:
    async with begin() as mesh:
        look = await mesh.shelf.publish("demo/look/1.0.0", LOOK)
        await mesh.caller(look, 1, 60)

        docker("rm", "-f", *labelled(f"org.algomesh.launcher={mesh.settings.launcher}"))

        await until(lambda: mesh.caller.of(messages.Death), 10)
        (death,) = mesh.caller.of(messages.Death)
        assert death.reason == "crash"


@pytest.fixture(autouse=True)
def no_built_images() -> Iterator[None]:
    """None is there before a test, and none stays."""
    instance_image()
    remove_built()
    yield
    remove_built()


def remove_built() -> None:
    for image in set(images_built_for("demo/reads/1.0.0")):
        docker("rmi", "-f", image)


def images_built_for(version: str) -> list[str]:
    found = docker("images", "-q", "--filter", f"label=org.algomesh.built-for={version}", "--filter", "dangling=false")
    return found.split()
