"""What tests of instances in other languages need: node's packages, and a mesh where such an instance has its place."""

import asyncio
import contextlib
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from algomesh import content
from algomesh.compiling import compile_route
from algomesh.order import Order
from algomesh.pipeline import Pipeline
from algomesh_broker import messages, subjects
from algomesh_broker.connection import Message
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.platform import Options
from algomesh_broker.route import Route
from tests.conditions import until
from tests.integration import bare_algorithms
from tests.integration.bare import ROUTE_KEY, BareMesh, is_algorithm

SLUGIFY_FOLDER = Path(__file__).parents[2] / "services" / "catalog" / "node" / "slugify"
PROGRAMS = Path(__file__).parent / "node_algorithms"
SLUGIFY = VersionId.parse("text/slugify/1.0.0")
MOODY = VersionId.parse("t/moody/1.0.0")
_NPM_S = 120


def make_project(folder: Path) -> Path:
    """A copy of slugify's project with its packages, and the tests' own programs beside it; skips without node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    stays = shutil.ignore_patterns("node_modules")
    shutil.copytree(SLUGIFY_FOLDER, folder, ignore=stays)
    for program in PROGRAMS.glob("*.js"):
        shutil.copy(program, folder)
    command = [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_NPM_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"needs node's packages: npm ci took over {_NPM_S} s")
    if done.returncode:
        pytest.skip(f"needs node's packages: npm ci: {done.stderr.strip()[-300:]}")
    return folder


def node_environment() -> dict[str, str]:
    """An environment in which nothing of ours can be imported: node is found, and no Python is."""
    node = shutil.which("node")
    assert node is not None
    return {"PATH": str(Path(node).resolve().parent), "HOME": "/nonexistent"}


class ForeignMesh(BareMesh):
    """A bare mesh in which node runs some of the versions. `leases` is what they have said."""

    project: Path

    async def hear_leases(self) -> None:
        self.leases: list[messages.InstanceLease] = []
        decode = msgspec.msgpack.Decoder(messages.InstanceLease).decode
        await self.admin.subscribe(subjects.ALL_LEASES, lambda message: self.leases.append(decode(message.data)))

    async def serve_node(self, version: VersionId, script: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Make a version callable, start one instance of it, and return when it is in the group."""
        await self.make_consumer(version)
        await self.publish_entry(version)
        instance = self.start_node(version, script, **options)
        await self.until_listening(version, instance)
        return instance

    def start_node(self, version: VersionId, script: str, **options: Any) -> "subprocess.Popen[bytes]":
        self._count += 1
        record = {
            "instance": f"bare-{self._count}",
            "launcher": "bare",
            "owner": version.owner,
            "name": version.name,
            "version": str(version.version),
            "folder": str(self.project),
            "nats_url": self.url,
            "token": "ai_bare",
            "options": msgspec.to_builtins(Options(**options)),
            "launched_ns": time.monotonic_ns(),
            "route_key": ROUTE_KEY,
            "command": ["node", script],
        }
        with (self.logs / f"bare-{self._count}.log").open("wb") as log:
            instance = subprocess.Popen(
                ["node", script],
                cwd=self.project,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=node_environment(),
                executable=shutil.which("node"),
            )
        assert instance.stdin is not None
        instance.stdin.write(msgspec.json.encode(record) + b"\n")
        instance.stdin.close()
        self.instances.append(instance)
        return instance

    async def until_listening(self, version: VersionId, instance: "subprocess.Popen[bytes]") -> None:
        give_up = time.monotonic() + 30
        while await self._nobody_listens(version):
            assert instance.poll() is None, self.log(f"bare-{self._count}")
            assert time.monotonic() < give_up, f"no instance of {version} came: {self.log(f'bare-{self._count}')}"
            await asyncio.sleep(0.01)

    def log(self, instance: str) -> str:
        return (self.logs / f"{instance}.log").read_text()

    def route(self, pipeline: Pipeline) -> Route:
        known = {found.version_id.algorithm: found for found in vars(bare_algorithms).values() if is_algorithm(found)}
        ours = {version.algorithm: version for version in (SLUGIFY, MOODY)}

        def resolve(reference: Reference) -> tuple[VersionId, messages.VersionEntry]:
            if reference.algorithm in ours:
                version = ours[reference.algorithm]
                return version, messages.VersionEntry(version=str(version.version))
            found = known[reference.algorithm]
            entry = messages.VersionEntry(version=str(found.version_id.version), attempts=found.options.attempts)
            return found.version_id, entry

        return compile_route(pipeline, resolve)

    async def call_version(self, version: VersionId, value: Any, *, attempts: int = 3) -> Any:
        """The output of one call that is sent `attempts` times at most."""
        run = secrets.token_hex(16)
        order = Order(
            version=version,
            content=content.encode(value),
            deadline=asyncio.get_running_loop().time() + 30,
            run=run,
            root=run,
            parent="",
            root_caller="k~a",
            attempts=attempts,
        )
        result, _ = await self.lane.call(order)
        return content.decode(result.content_type, result.detail, result.payload)

    async def restart_server(self, *versions: VersionId) -> None:
        """The server dies and comes back; streams and consumers are made again, as a launcher would."""
        await self.server.kill()
        await self.server.start()
        await until(lambda: self.admin.is_connected)
        with contextlib.suppress(AssertionError):  # the server kept the streams' configuration
            await self.make_streams()
        for version in versions:
            await self.make_consumer(version)

    async def heard(self, subject: str) -> list[Message]:
        """A list that fills with what comes on `subject`."""
        found: list[Message] = []
        await self.admin.subscribe(subject, found.append)
        return found
