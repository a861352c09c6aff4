"""What the launcher is told from outside, and what it finds out about the machine it runs on."""

import math
import os
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from algomesh_observability import otel_environment
from algomesh_services.launcher.budget import Capacity

_ID_ALPHABET = string.ascii_lowercase + string.digits
_MEMORY_SHARE = 0.8
_MAX_THREADS = 4
DRIVERS = ("process", "docker")
_FOR_INSTANCES = ("ALGOMESH_DISPATCH", "ALGOMESH_LOG")


class BadSettings(ValueError):
    """A variable of the environment is not what it should be; the sentence names it."""


def new_launcher_id() -> str:
    """The id of one life of a launcher: 8 characters a-z0-9; its instances are `<id>-1`, `<id>-2` and so on."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))


@dataclass(frozen=True, kw_only=True)
class DockerSettings:
    """How the driver `docker` makes containers; `host` is the engine (empty: what DOCKER_HOST says).

    `image` holds algomesh; `network` and `nats_url` are how a container reaches NATS; `versions` is what the engine
    sees of the launcher's folder of unpacked versions, a path or a volume (empty: nothing, they are sent).
    """

    image: str = ""
    network: str = "bridge"
    nats_url: str = ""
    versions: str = ""
    host: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], nats_url: str) -> Self:
        """Read ALGOMESH_DOCKER_IMAGE, _NETWORK, _NATS (else `nats_url`), _VERSIONS, and DOCKER_HOST.

        Without a network it is the engine's `bridge`, or the host's where NATS listens on a loopback address only.
        """
        seen_url = environment.get("ALGOMESH_DOCKER_NATS", "").strip() or nats_url
        is_loopback = (urlsplit(seen_url).hostname or "").startswith(("127.", "localhost", "::1"))
        return cls(
            image=environment.get("ALGOMESH_DOCKER_IMAGE", "").strip(),
            network=environment.get("ALGOMESH_DOCKER_NETWORK", "").strip() or ("host" if is_loopback else "bridge"),
            nats_url=seen_url,
            versions=environment.get("ALGOMESH_DOCKER_VERSIONS", "").strip(),
            host=environment.get("DOCKER_HOST", "").strip(),
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Times in seconds. `capacity` is what all instances of this launcher may use together.

    An instance that is not ready `start_timeout_s` after its launch is killed. `drain_s` is the longest that a
    retired one may go on, `stop_s` the same when the launcher itself stops. `cache_bytes` bounds the unpacked versions.
    `instance_environment` is what instances are given beside their devices.
    """

    nats_url: str
    state: Path
    capacity: Capacity
    threads: int = 1
    start_timeout_s: float = 300.0
    drain_s: float = 30.0
    stop_s: float = 5.0
    cache_bytes: int = 8 * 2**30
    instance_environment: dict[str, str] = field(default_factory=dict)
    launcher: str = field(default_factory=new_launcher_id)
    driver: str = "process"
    docker: DockerSettings = DockerSettings()

    @property
    def versions(self) -> Path:
        """Where versions lie unpacked; instances can read it."""
        return self.state / "versions"

    @property
    def logs(self) -> Path:
        """What instances print."""
        return self.state / "logs"

    @property
    def secrets(self) -> Path:
        """The seeds of this mesh."""
        return self.state / "secrets"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read `ALGOMESH_NATS`, `ALGOMESH_STATE`, `ALGOMESH_DRIVER` (process or docker) and the variables below.

        Raises BadSettings.

        ALGOMESH_START_TIMEOUT_S (300), ALGOMESH_MAX_INSTANCES (100), ALGOMESH_MEMORY_BYTES (80 % of what the machine or
        its control group has), ALGOMESH_GPUS (`0,1`; found when not given), ALGOMESH_INSTANCE_THREADS,
        ALGOMESH_GRACE_S (5, when the launcher stops), ALGOMESH_CACHE_BYTES (8 GiB). ALGOMESH_DISPATCH, ALGOMESH_LOG and
        what of OTEL_* holds no secret go on to the instances.
        """
        driver = _text(environment, "ALGOMESH_DRIVER", "process")
        if driver not in DRIVERS:
            raise BadSettings(f"ALGOMESH_DRIVER={driver!r} is none of {', '.join(DRIVERS)}")
        nats_url = _text(environment, "ALGOMESH_NATS", "nats://127.0.0.1:4222")
        cpus = len(os.sched_getaffinity(0))
        memory_bytes = int(_MEMORY_SHARE * machine_memory_bytes())
        gpus = environment.get("ALGOMESH_GPUS")
        return cls(
            nats_url=nats_url,
            driver=driver,
            docker=DockerSettings.from_environment(environment, nats_url),
            state=Path(_text(environment, "ALGOMESH_STATE")).absolute(),
            capacity=Capacity(
                max_instances=int(_number(environment, "ALGOMESH_MAX_INSTANCES", 100)),
                memory_bytes=int(_number(environment, "ALGOMESH_MEMORY_BYTES", memory_bytes)),
                gpus=find_gpus(environment) if gpus is None else _listed(gpus),
            ),
            threads=int(_number(environment, "ALGOMESH_INSTANCE_THREADS", min(_MAX_THREADS, max(1, cpus // 2)))),
            start_timeout_s=_number(environment, "ALGOMESH_START_TIMEOUT_S", 300.0),
            stop_s=_number(environment, "ALGOMESH_GRACE_S", 5.0),
            cache_bytes=int(_number(environment, "ALGOMESH_CACHE_BYTES", 8 * 2**30)),
            instance_environment={
                **{name: environment[name] for name in _FOR_INSTANCES if name in environment},
                **otel_environment.for_instances(environment),
            },
        )


def machine_memory_bytes(root: Path = Path("/")) -> int:
    """The memory of this machine, or of the control group we are in where that is less."""
    found: list[int] = []
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            found.append(int(line.split()[1]) * 1024)
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found)


def find_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs an instance could be given, as CUDA_VISIBLE_DEVICES names them; empty when there is none."""
    nodes = [path.name for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    if not nodes:
        return ()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return tuple(map(str, range(len(nodes)))) if visible is None else _listed(visible)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _text(environment: Mapping[str, str], name: str, default: str = "") -> str:
    value = environment.get(name, "").strip() or default
    if not value:
        raise BadSettings(f"{name} is not set")
    return value


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "").strip()
    try:
        value = float(text) if text else float(default)
    except ValueError as error:
        raise BadSettings(f"{name}={text!r} is not a number") from error
    if not math.isfinite(value) or value <= 0:
        raise BadSettings(f"{name}={text!r} is not a number above 0")
    return value
