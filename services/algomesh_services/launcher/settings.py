"""What the launcher is told by its environment, read here and nowhere else."""

import os
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from msgspec import Meta

from algomesh_observability import otel_environment
from algomesh_services.environment import Variable, read
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.hardware import find_gpus, machine_memory_bytes
from algomesh_services.program_settings import DEFAULT_NATS, GRACE, NATS, ProgramSettings

_ID_ALPHABET: Final = string.ascii_lowercase + string.digits
_MEMORY_SHARE: Final = 0.8
_MAX_THREADS: Final = 4
_DAY_S: Final = 86_400
_FOR_INSTANCES: Final = ("ALGOMESH_DISPATCH", "ALGOMESH_LOG")


def new_launcher_id() -> str:
    """The id of one life of a launcher: 8 characters a-z0-9; its instances are `<id>-1`, `<id>-2` and so on."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))


@dataclass(frozen=True, kw_only=True)
class GivenCapacity(Capacity):
    """What the environment says of a launcher's capacity; where it says nothing, what the machine has."""

    max_instances: Annotated[
        int, Variable("ALGOMESH_MAX_INSTANCES", "how many instances there may be at once"), Meta(ge=1, le=10**6)
    ] = 100
    memory_bytes: Annotated[
        int,
        Variable("ALGOMESH_MEMORY_BYTES", "the memory that all instances may use together, in bytes"),
        Meta(ge=1, le=10**15),
    ] = field(default_factory=lambda: int(_MEMORY_SHARE * machine_memory_bytes()))
    gpus: Annotated[
        tuple[str, ...], Variable("ALGOMESH_GPUS", "the GPUs that instances may use, like 0,1; set to nothing: none")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class DockerSettings:
    """How the driver `docker` makes containers.

    Without a network it is the engine's `bridge`, or the host's where NATS listens on a loopback address only.
    """

    image: Annotated[str, Variable("ALGOMESH_DOCKER_IMAGE", "an image that holds algomesh")] = ""
    network: Annotated[str, Variable("ALGOMESH_DOCKER_NETWORK", "the network that containers are in")] = "bridge"
    nats_url: Annotated[
        str, Variable("ALGOMESH_DOCKER_NATS", "the address of NATS as containers reach it, if not ALGOMESH_NATS")
    ] = ""
    versions: Annotated[
        str,
        Variable(
            "ALGOMESH_DOCKER_VERSIONS",
            "what the engine sees of the folder of unpacked versions, a path or a volume; without it they are sent",
        ),
    ] = ""
    host: Annotated[str, Variable("DOCKER_HOST", "the engine; without it the one of this machine")] = ""
    project: Annotated[
        str, Variable("ALGOMESH_DOCKER_PROJECT", "a name that all that is made there is labelled with")
    ] = ""
    kept_images: Annotated[
        int,
        Variable("ALGOMESH_DOCKER_KEPT_IMAGES", "how many images that were built for versions stay, used or not"),
        Meta(ge=1, le=10**6),
    ] = 50

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], nats_url: str) -> Self:
        """As the environment has them; `nats_url` is where the launcher itself reaches NATS. Raises BadSetting."""
        given = read(cls, environment, program="launcher", defaults={"nats_url": nats_url, "network": ""})
        if given.network:
            return given
        is_loopback = (urlsplit(given.nats_url).hostname or "").startswith(("127.", "localhost", "::1"))
        return replace(given, network="host" if is_loopback else "bridge")


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """Times in seconds. `capacity` is what all instances of this launcher may use together.

    `drain_s` is the longest that a retired instance may go on, `stop_s` the same when the launcher itself stops.
    `instance_environment` is what instances are given beside their devices.
    """

    program: ClassVar[str] = "launcher"

    nats_url: Annotated[str, NATS] = DEFAULT_NATS
    capacity: Capacity
    threads: Annotated[
        int,
        Variable("ALGOMESH_INSTANCE_THREADS", "how many threads mathematical libraries may use in an instance"),
        Meta(ge=1, le=10_000),
    ] = 1
    start_timeout_s: Annotated[
        float,
        Variable("ALGOMESH_START_TIMEOUT_S", "seconds after which an instance that is not ready is killed"),
        Meta(gt=0, le=_DAY_S),
    ] = 300.0
    drain_s: float = 30.0
    stop_s: Annotated[float, GRACE, Meta(gt=0, le=_DAY_S)] = 5.0
    cache_bytes: Annotated[
        int, Variable("ALGOMESH_CACHE_BYTES", "how large all unpacked versions may be, in bytes"), Meta(ge=1, le=10**15)
    ] = 8 * 2**30
    instance_environment: dict[str, str] = field(default_factory=dict)
    launcher: str = field(default_factory=new_launcher_id)
    driver: Annotated[
        Literal["process", "docker"], Variable("ALGOMESH_DRIVER", "whether instances are processes or containers")
    ] = "process"
    docker: DockerSettings = DockerSettings()

    @property
    def versions(self) -> Path:
        """Where versions lie unpacked; instances can read it."""
        return self.state / "versions"

    @property
    def logs(self) -> Path:
        """What instances print."""
        return self.state / "logs"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As the environment has them, and what it leaves open as the machine is. Raises BadSetting.

        ALGOMESH_DISPATCH, ALGOMESH_LOG and what of OTEL_* holds no secret go on to the instances.
        """
        cpus = len(os.sched_getaffinity(0))
        found = {
            "threads": min(_MAX_THREADS, max(1, cpus // 2)),
            "capacity": read(
                GivenCapacity, environment, program=cls.program, defaults={"gpus": find_gpus(environment)}
            ),
            "instance_environment": {
                **{name: environment[name] for name in _FOR_INSTANCES if name in environment},
                **otel_environment.for_instances(environment),
            },
        }
        given = read(cls, environment, program=cls.program, defaults=found)
        return replace(given, docker=DockerSettings.from_environment(environment, given.nats_url))
