"""The docker driver's settings, and the sentences in which an engine's refusals reach people."""

import pytest
from aiodocker.exceptions import DockerError

from algomesh_services.environment import BadSetting
from algomesh_services.launcher.docker_engine import Engine
from algomesh_services.launcher.driver import LaunchFailed
from algomesh_services.launcher.settings import DockerSettings, Settings

STATE = {"ALGOMESH_STATE": "/state"}


def test_nothing_set_means_processes() -> None:
    assert Settings.from_environment(STATE).driver == "process"


def test_a_driver_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_DRIVER='podman' is none of process, docker"):
        Settings.from_environment({**STATE, "ALGOMESH_DRIVER": "podman"})


@pytest.mark.parametrize(
    ("environment", "network", "nats_url"),
    [
        ({"ALGOMESH_NATS": "nats://127.0.0.1:4222"}, "host", "nats://127.0.0.1:4222"),
        ({"ALGOMESH_NATS": "nats://localhost:4222"}, "host", "nats://localhost:4222"),
        ({"ALGOMESH_NATS": "nats://[::1]:4222"}, "host", "nats://[::1]:4222"),
        ({"ALGOMESH_NATS": "nats://nats:4222"}, "bridge", "nats://nats:4222"),
        ({"ALGOMESH_NATS": "nats://nats:4222", "ALGOMESH_DOCKER_NETWORK": "mesh"}, "mesh", "nats://nats:4222"),
        ({"ALGOMESH_DOCKER_NATS": "nats://10.0.0.1:4222"}, "bridge", "nats://10.0.0.1:4222"),
    ],
)
def test_containers_are_where_they_can_reach_nats(environment: dict[str, str], network: str, nats_url: str) -> None:
    found = Settings.from_environment({**STATE, **environment}).docker

    assert (found.network, found.nats_url) == (network, nats_url)


def test_the_rest_is_taken_as_it_stands() -> None:
    environment = {
        "ALGOMESH_DOCKER_IMAGE": "mesh/worker:1", "ALGOMESH_DOCKER_VERSIONS": "volume",
        "DOCKER_HOST": "tcp://proxy:2375",
    }  # fmt: skip

    found = DockerSettings.from_environment(environment, "nats://nats:4222")

    assert (found.image, found.versions, found.host) == ("mesh/worker:1", "volume", "tcp://proxy:2375")


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (
            900,
            "Cannot connect",
            "the Docker engine at tcp://engine:1 does not answer (Cannot connect); start it",
        ),
        (900, "[Permission denied]", "this user may not use its socket: join its group"),
        (403, "Forbidden", "a socket proxy must allow CONTAINERS, IMAGES, VOLUMES, BUILD and POST"),
        (404, "manifest unknown", "check the name 'a/b:1', or build or load the image where the engine is"),
        (500, "pull access denied for a/b", "log the engine in to the registry"),
        (500, 'could not select device driver "nvidia"', "needs the NVIDIA container toolkit"),
        (400, 'exec: "docker-init": not found', "needs docker-init (tini)"),
        (409, "anything else.", "a try: anything else"),
    ],
)
async def test_what_the_engine_refuses_is_told_with_what_to_do(status: int, said: str, told: str) -> None:
    async with Engine("tcp://engine:1") as engine:
        with pytest.raises(LaunchFailed) as caught, engine.asking("a try", blame="version", image="a/b:1"):
            raise DockerError(status, said)

    assert told in str(caught.value)
    assert str(caught.value).startswith("a try: ")
    assert caught.value.blame == ("machine" if status in (403, 900) else "version")


async def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(LaunchFailed, match="DOCKER_HOST='nonsense' cannot be used"):
        Engine("nonsense")
