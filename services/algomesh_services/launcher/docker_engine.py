"""The Docker engine as the docker driver uses it; the one module that imports aiodocker.

Where the engine is, DOCKER_HOST says (`unix://…`, `tcp://…` with DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH, or a socket
proxy); else it is /var/run/docker.sock. Whatever the engine refuses becomes LaunchFailed, with a sentence that says
what to do about it.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import IO, Any, Final, Self

import aiodocker
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from algomesh_services.launcher.driver import Blame, LaunchFailed

LABEL: Final = "org.algomesh."
_DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
_FORBIDDEN: Final = 403
_AWAY: Final = 900  # the status that aiodocker gives where there was no answer
_LAST_OUTPUT: Final = 6


class Engine:
    """One engine; an async context manager. Every method raises LaunchFailed."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
        self._client = self._connect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def connect(self) -> "Line":
        """A line of its own to the engine, for what waits or reads for as long as a container lives."""
        return Line(self._connect(), self)

    @contextlib.contextmanager
    def asking(self, what: str, *, blame: Blame = "machine", image: str = "") -> Iterator[None]:
        """Around one request: what goes wrong is LaunchFailed, and names `what` was tried."""
        try:
            yield
        except DockerError as error:
            to_blame = "machine" if error.status >= _AWAY or error.status == _FORBIDDEN else blame
            raise LaunchFailed(f"{what}: {self._explain(error, image)}", blame=to_blame) from error
        except (OSError, TimeoutError) as error:
            raise LaunchFailed(f"{what}: {self._away(str(error))}") from error

    # Images

    async def image_id(self, image: str) -> str | None:
        """The id of an image that is there, else None."""
        with self.asking(f"the image {image} cannot be looked up"):
            try:
                return str((await self._client.images.inspect(image))["Id"])
            except DockerError as error:
                if error.status == 404:
                    return None
                raise

    async def pull(self, image: str, *, blame: Blame) -> None:
        """Fetch an image from its registry."""
        with self.asking(f"the image {image} is not here and cannot be pulled", blame=blame, image=image):
            await self._client.images.pull(image)

    async def build(
        self, context: IO[bytes], tag: str, *, labels: Mapping[str, str], arguments: Mapping[str, str], what: str
    ) -> None:
        """Build an image from a gzipped tar; what the build printed last is in the sentence of a failure."""
        printed: list[str] = []
        try:
            building = self._client.images.build(
                fileobj=context, encoding="gzip", tag=tag, stream=True, forcerm=True,
                labels=labels, buildargs=arguments,
            )  # fmt: skip
            with self.asking(f"{what} cannot be built", blame="version"):
                async for step in building:
                    printed += str(step.get("stream", "")).splitlines()
                    del printed[:-_LAST_OUTPUT]
        except LaunchFailed as error:
            said = " | ".join(line.strip() for line in printed if line.strip())
            raise LaunchFailed(
                f"{error}; it printed last: {said}" if said else str(error), blame=error.blame
            ) from error

    async def images(self, label: str) -> list[dict[str, Any]]:
        """What the engine tells of all images that have `label`: Id, RepoTags, Labels, Created and more."""
        with self.asking("images cannot be listed"):
            return list(await self._client.images.list(filters={"label": [label]}))

    async def remove_image(self, image: str) -> bool:
        """Remove an image; False when a container, running or not, was made of it, and it stays."""
        with self.asking(f"the image {image} cannot be removed"):
            try:
                await self._client.images.delete(image)
            except DockerError as error:
                if error.status == 409:
                    return False
                if error.status != 404:
                    raise
        return True

    # Volumes

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume."""
        with self.asking("a volume for the version's files cannot be made"):
            await self._client.volumes.create({"Name": name, "Labels": dict(labels)})  # type: ignore[no-untyped-call]
            # aiodocker's

    async def volumes(self, label: str) -> dict[str, dict[str, str]]:
        """The labels of all volumes that have `label`, by name."""
        with self.asking("volumes cannot be listed"):
            found = await self._client.volumes.list(filters={"label": [label]})  # type: ignore[no-untyped-call]  # aiodocker's
        return {each["Name"]: each.get("Labels") or {} for each in found["Volumes"] or []}

    async def remove_volume(self, name: str) -> None:
        """Remove a volume; one that is used or gone already is left alone."""
        with contextlib.suppress(DockerError):
            await (await self._client.volumes.get(name)).delete()  # type: ignore[no-untyped-call]  # aiodocker's

    # Containers

    async def create(self, name: str, config: Mapping[str, Any], *, blame: Blame = "machine") -> str:
        """Make a container and return its id; it does not run yet."""
        image = str(config["Image"])
        with self.asking("no container can be made", blame=blame, image=image):
            return (await self._client.containers.create(dict(config), name=name)).id

    async def fill(self, container: str, path: str, archive: IO[bytes]) -> None:
        """Unpack a tar into a container that does not run."""
        with self.asking("the version's files cannot be put into a container"):
            one = self._client.containers.container(container)
            await one.put_archive(path, archive)  # type: ignore[no-untyped-call]  # aiodocker's

    async def start_with(self, container: str, stdin: bytes) -> None:
        """Start a container whose stdin holds `stdin` and then ends."""
        one = self._client.containers.container(container)
        with self.asking("the container cannot be started"):
            attached = one.attach(stdin=True)
            try:
                await attached.write_in(b"")  # attaches; only what is attached before the start misses nothing
                await one.start()
                await attached.write_in(stdin)
            finally:
                await attached.close()

    async def signal(self, container: str, name: str) -> None:
        """Send a signal; a container that does not run, or is gone, is left alone."""
        with self.asking(f"{name} cannot be sent"):
            try:
                await self._client.containers.container(container).kill(signal=name)
            except DockerError as error:
                if error.status not in (404, 409):
                    raise

    async def state(self, container: str) -> dict[str, Any] | None:
        """What the engine knows of how a container is; None when it is gone."""
        with self.asking("the container cannot be looked up"):
            try:
                found: dict[str, Any] = (await self._client.containers.container(container).show())["State"]
            except DockerError as error:
                if error.status == 404:
                    return None
                raise
        return found

    async def memory_bytes(self, container: str) -> int:
        """What a container uses, without what the kernel would give back at once."""
        with self.asking("the container's memory cannot be read"):
            answers = await self._client.containers.container(container).stats(stream=False)
        memory = answers[0].get("memory_stats", {}) if answers else {}
        details = memory.get("stats", {})
        return max(
            0, int(memory.get("usage", 0)) - int(details.get("total_inactive_file", details.get("inactive_file", 0)))
        )

    async def containers(self, label: str) -> dict[str, dict[str, str]]:
        """The labels of all containers, running or not, that have `label`, by id."""
        with self.asking("containers cannot be listed"):
            found = await self._client.containers.list(all=True, filters=f'{{"label":["{label}"]}}')
        return {each.id: each["Labels"] or {} for each in found}

    async def remove(self, container: str) -> None:
        """End and remove a container; one that is gone already is left alone."""
        with self.asking("a container cannot be removed"):
            try:
                await self._client.containers.container(container).delete(force=True, v=True)
            except DockerError as error:
                if error.status not in (404, 409):  # 409: it is being removed
                    raise

    # Private

    def _connect(self) -> aiodocker.Docker:
        try:
            return aiodocker.Docker(url=self.host)
        except (ValueError, OSError) as error:
            raise LaunchFailed(f"DOCKER_HOST={self.host!r} cannot be used: {error}") from error

    def _explain(self, error: DockerError, image: str) -> str:
        text = str(error.message).strip().rstrip(".")
        if error.status >= _AWAY:
            return self._away(text)
        if error.status == _FORBIDDEN:
            return f"{text}; a socket proxy must allow CONTAINERS, IMAGES, VOLUMES, BUILD and POST"
        if "docker-init" in text:
            return f"{text}; the engine's machine needs docker-init (tini), which comes with Docker's packages"
        if "could not select device driver" in text:
            return f"{text}; a version that wants a GPU needs the NVIDIA container toolkit on the engine's machine"
        if image and ("denied" in text or "unauthorized" in text or "authentication required" in text):
            return f"{text}; log the engine in to the registry (`docker login`), or pull the image there beforehand"
        if image and (error.status == 404 or "not found" in text or "no such host" in text or "unknown" in text):
            return f"{text}; check the name {image!r}, or build or load the image where the engine is"
        return text

    def _away(self, text: str) -> str:
        hint = "start it, or set DOCKER_HOST (with DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH for TLS)"
        if "Permission denied" in text:
            hint = "this user may not use its socket: join its group, or set DOCKER_HOST to a socket proxy"
        return f"the Docker engine at {self.host} does not answer ({text}); {hint}"


class Line:
    """One container's own line to the engine."""

    def __init__(self, client: aiodocker.Docker, engine: Engine) -> None:
        self._client, self._engine = client, engine

    async def wait(self, container: str) -> None:
        """Return once a container has ended or is gone. Raises LaunchFailed when the engine cannot be asked."""
        with self._engine.asking("the container cannot be followed"):
            try:
                await self._one(container).wait()
            except DockerError as error:
                if error.status != 404:
                    raise

    async def printed(self, container: str, since: float = 0.0) -> AsyncIterator[bytes]:
        """What a container prints, from `since` (seconds since the epoch) until its end. Raises LaunchFailed."""
        with self._engine.asking("the container's output cannot be read"):
            async for text in self._one(container).log(stdout=True, stderr=True, follow=True, since=since):
                yield text.encode()

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()

    def _one(self, container: str) -> DockerContainer:
        return self._client.containers.container(container)
