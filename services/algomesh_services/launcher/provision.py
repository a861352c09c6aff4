"""What must be there before an instance is: its bundle on disk, and its version's consumer; both are got at once."""

import asyncio
from collections.abc import Awaitable, Callable

from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.messages import Unable
from algomesh_broker.names import VersionId
from algomesh_services.asking import Refused
from algomesh_services.launcher.bundles import BadArchive, Bundle, Bundles
from algomesh_services.launcher.fleet import StartRefused
from algomesh_services.launcher.instance import StartFailed
from algomesh_services.launcher.parking import Parking

_UNKNOWN = ("unknown_algorithm", "unknown_version")
_PASSING = ("unavailable", "overloaded", "storage_failed")


def provider(bundles: Bundles, parking: Parking) -> Callable[[VersionId], Awaitable[Bundle]]:
    """The function a fleet prepares its instances with; what it raises is StartRefused."""

    async def prepare(version: VersionId) -> Bundle:
        try:
            bundle, _ = await asyncio.gather(bundles.prepare(version), parking.ensure_consumer(version))
        except (BrokerError, BadArchive, OSError) as error:
            manifest = bundles.known_manifest(version)
            if manifest is not None and manifest.is_outside:
                raise StartRefused(runs_outside(version)) from error
            raise StartRefused(as_failure(version, error)) from error
        return bundle

    return prepare


def as_failure(version: VersionId, error: Exception) -> StartFailed:
    """Why a version's manifest, archive or consumer could not be had, and whether trying again may help."""
    if isinstance(error, Refused) and error.code in _UNKNOWN:
        return StartFailed(blame="version", code=error.code, message=str(error))
    if isinstance(error, Refused) and error.code not in _PASSING:
        return StartFailed(blame="version", code="load_failed", message=f"{version}: {error}")
    if isinstance(error, BadArchive | BadMessage):
        return StartFailed(blame="version", code="load_failed", message=f"{version}: {error}")
    return StartFailed(blame="machine", code="load_failed", message=f"{version} cannot be started here: {error}")


def runs_outside(version: VersionId) -> StartFailed:
    """What those are told who wait for a version that only its user can start, while nobody does."""
    return StartFailed(
        blame="version",
        code="no_capacity",
        message=f"{version} runs outside the mesh, and nobody runs it now: start it with `algomesh serve --exec` or "
        "`--http`, or wait until its owner does",
    )


def no_instance_of(pipeline: VersionId) -> Unable:
    """What those are told who wait for an instance of a named pipeline."""
    return Unable(
        code="bad_reference",
        message=f"{pipeline} is a named pipeline, and has no instances: its caller puts its stages in its place. "
        "This one was called as if it were an algorithm, by a client that is too old for pipelines",
    )
