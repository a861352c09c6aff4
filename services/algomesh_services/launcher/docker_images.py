"""Which image a version runs from: the one it names, or one that is built for it, or the launcher's own.

What is built is tagged by what it was built from (the version's digest, or the requirements and the base image), so it
is built once and found again by the next launcher. A Dockerfile gets the launcher's image as the argument
ALGOMESH_IMAGE, to begin with: `ARG ALGOMESH_IMAGE` and `FROM ${ALGOMESH_IMAGE}`.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Final

import structlog

from algomesh_services.launcher.docker_engine import LABEL, Engine
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
    """Images for one launcher, whose own is `base`."""

    def __init__(self, engine: Engine, base: str) -> None:
        self._engine, self._base = engine, base
        self._ids: dict[str, str] = {}
        self._busy: dict[str, asyncio.Lock] = {}

    async def base(self) -> str:
        """The id of the launcher's own image. Raises LaunchFailed."""
        if not self._base:
            raise LaunchFailed("ALGOMESH_DOCKER_IMAGE is not set: it names an image that holds algomesh")
        return await self._there(self._base, blame_version=False)

    async def choose(self, spec: LaunchSpec) -> str:
        """The id of the image for `spec`, pulled or built if need be. Raises LaunchFailed."""
        if spec.image:
            return await self._there(spec.image, blame_version=True)
        if (spec.folder / _DOCKERFILE).is_file():
            base = await self.base() if self._base else ""
            tag = f"algomesh/version:{spec.digest[:40]}-{base.removeprefix('sha256:')[:12]}".rstrip("-")
            return await self._built(tag, spec.folder, {}, {"ALGOMESH_IMAGE": base} if base else {}, spec)
        base = await self.base()
        if spec.command or not spec.requirements:
            return base
        wanted = "\n".join(sorted(spec.requirements)) + "\n"
        mark = hashlib.sha256(f"{base}\n{wanted}".encode()).hexdigest()
        files = {_DOCKERFILE: _REQUIREMENTS.format(base=base).encode(), "requirements.txt": wanted.encode()}
        return await self._built(f"algomesh/requirements:{mark[:40]}", None, files, {}, spec)

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
        self, tag: str, folder: Path | None, files: dict[str, bytes], arguments: dict[str, str], spec: LaunchSpec
    ) -> str:
        async with self._busy.setdefault(tag, asyncio.Lock()):
            found = await self._engine.image_id(tag)
            if found is not None:
                return found
            version = spec.labels.get("version", spec.instance)
            try:
                context = await asyncio.to_thread(pack_folder, folder, zipped=True, extra=files)
            except OSError as error:
                raise LaunchFailed(f"{folder} cannot be read: {error.strerror}") from error
            log.info("image_building", image=tag, version=version)
            with context:
                what = f"the image of {version}"
                labels = {f"{LABEL}built-for": version}
                await self._engine.build(context, tag, labels=labels, arguments=arguments, what=what)
            found = await self._engine.image_id(tag)
        if found is None:
            raise LaunchFailed(f"the image of {spec.labels.get('version')} was built and is not there", blame="version")
        log.info("image_built", image=tag, version=spec.labels.get("version"))
        return found
