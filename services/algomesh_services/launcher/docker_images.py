"""Which image a version runs from: the one it names, or one that is built for it, or the launcher's own.

What is built is tagged by what it was built from (the version's digest, or the requirements and the base image), so it
is built once and found again by this mesh's next launcher; `docker_built` says when it is removed. A Dockerfile gets
the launcher's image as the argument ALGOMESH_IMAGE, to begin with: `ARG ALGOMESH_IMAGE` and `FROM ${ALGOMESH_IMAGE}`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from algomesh_services.launcher.docker_built import BUILT_FOR, DIGEST, BuiltImages
from algomesh_services.launcher.docker_engine import Engine
from algomesh_services.launcher.docker_files import pack_folder
from algomesh_services.launcher.driver import LaunchFailed, LaunchSpec

log = structlog.get_logger("algomesh.launcher")

_DOCKERFILE: Final = "Dockerfile"
_REQUIREMENTS: Final = """FROM {base}
USER root
COPY requirements.txt /tmp/algomesh-requirements.txt
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check -r /tmp/algomesh-requirements.txt
"""


class Images:
    """Images for one launcher, whose own is `base`; what it builds is among `built`."""

    def __init__(self, engine: Engine, base: str, built: BuiltImages) -> None:
        self._engine, self._base, self._made = engine, base, built
        self._busy: dict[str, asyncio.Lock] = {}

    async def base(self) -> str:
        """The id of the launcher's own image. Raises LaunchFailed."""
        if not self._base:
            raise LaunchFailed("ALGOMESH_DOCKER_IMAGE is not set: it names an image that holds algomesh")
        return await self._there(self._base, blame_version=False)

    @asynccontextmanager
    async def chosen(self, spec: LaunchSpec) -> AsyncIterator[str]:
        """The id of the image for `spec`, pulled or built if need be; until the end it stays. Raises LaunchFailed."""
        if spec.image:
            yield await self._there(spec.image, blame_version=True)
            return
        if (spec.folder / _DOCKERFILE).is_file():
            base = await self.base() if self._base else ""
            tag = f"version-{spec.digest[:40]}-{base.removeprefix('sha256:')[:12]}".rstrip("-")
            folder, files, arguments = spec.folder, dict[str, bytes](), {"ALGOMESH_IMAGE": base} if base else {}
        else:
            base = await self.base()
            if spec.command or not spec.requirements:
                yield base
                return
            wanted = "\n".join(sorted(spec.requirements)) + "\n"
            mark = hashlib.sha256(f"{base}\n{wanted}".encode()).hexdigest()
            tag = f"requirements-{mark[:40]}"
            files = {_DOCKERFILE: _REQUIREMENTS.format(base=base).encode(), "requirements.txt": wanted.encode()}
            folder, arguments = None, {}
        async with self._made.using(tag, spec.digest):
            yield await self._built(self._made.name(tag), folder, files, arguments, spec)

    async def _there(self, image: str, *, blame_version: bool) -> str:
        async with self._busy.setdefault(image, asyncio.Lock()):
            found = await self._engine.image_id(image)
            if found is None:
                log.info("image_pulled", image=image)
                await self._engine.pull(image, blame="version" if blame_version else "machine")
                found = await self._engine.image_id(image)
        if found is None:
            raise LaunchFailed(f"the image {image} was pulled and is not there")
        return found

    async def _built(
        self, image: str, folder: Path | None, files: dict[str, bytes], arguments: dict[str, str], spec: LaunchSpec
    ) -> str:
        async with self._busy.setdefault(image, asyncio.Lock()):
            found = await self._engine.image_id(image)
            if found is not None:
                return found
            version = spec.labels.get("version", spec.instance)
            try:
                context = await asyncio.to_thread(pack_folder, folder, zipped=True, extra=files)
            except OSError as error:
                raise LaunchFailed(f"{folder} cannot be read: {error.strerror}") from error
            log.info("image_building", image=image, version=version)
            with context:
                what = f"the image of {version}"
                labels = {**self._made.labels, BUILT_FOR: version, DIGEST: spec.digest}
                await self._engine.build(context, image, labels=labels, arguments=arguments, what=what)
            found = await self._engine.image_id(image)
        if found is None:
            raise LaunchFailed(f"the image of {spec.labels.get('version')} was built and is not there", blame="version")
        log.info("image_built", image=image, version=spec.labels.get("version"))
        return found
