"""Whether this process makes spans, and where they go: one switch, set once by a program's main or an instance's boot.

Off by default. While it is off, `active` is None, nothing of OpenTelemetry's SDK is imported, and whoever could make
spans looks at `active` once, when it begins. Spans are made at the end of a piece of work, and only if they go out:
its trace is sampled, or it failed, or it met a cold start.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from algomesh_observability import otel_environment
from algomesh_observability.logger import get_logger
from algomesh_observability.sampling import Sampler
from algomesh_observability.tracing import TraceContext

if TYPE_CHECKING:
    from algomesh_observability.exporting import Outlet

log = get_logger("algomesh.telemetry")

FLUSH_S: Final = 2.0
_QUEUE, _DELAY_MS = 2048, 5000


class Telemetry:
    """Telemetry that is on: decides which spans go out, and hands them over."""

    def __init__(self, outlet: "Outlet", sampler: Sampler) -> None:
        self._outlet, self.sampler = outlet, sampler
        self.add = outlet.add

    def samples(self, context: TraceContext) -> bool:
        """Whether a trace is kept; what is decided is passed on with everything that is asked for in it."""
        return self.sampler.samples(context.trace, context.is_sampled)

    @property
    def dropped(self) -> int:
        """How many spans were lost, because the queue was full or the collector did not take them."""
        return self._outlet.dropped

    @property
    def exported(self) -> int:
        """How many spans the collector has taken."""
        return self._outlet.exported

    def serve_user_code(self) -> None:
        """Have spans that user code makes by OpenTelemetry's own API go the same way, unless it has set up its own."""
        from algomesh_observability import exporting

        exporting.install(self._outlet.provider(self.sampler))

    def close(self, within_s: float = FLUSH_S) -> None:
        """Send what there is; blocks for at most `within_s` seconds."""
        self._outlet.close(within_s)


active: Telemetry | None = None


def configure(
    service: str,
    *,
    instance: str = "",
    version: str = "",
    environment: Mapping[str, str] = os.environ,
) -> Telemetry | None:
    """Make spans from now on, if the environment says where they go; `service` and the others name this process.

    Returns what `active` is then. A second call changes nothing.
    """
    global active  # noqa: PLW0603  # one process, one switch
    if active is not None or not otel_environment.is_wanted(environment):
        return active
    if problem := otel_environment.why_not(environment):
        log.warning("telemetry_off", reason=problem)
        return None
    try:
        from algomesh_observability.exporting import Outlet
    except ModuleNotFoundError as error:
        log.warning("telemetry_off", reason=f"it needs {error.name}: pip install 'algomesh[telemetry]'")
        return None
    try:
        outlet = Outlet(
            _resource(service, instance, version, environment),
            say=_say,
            queue_size=_whole(environment, "OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE),
            delay_ms=_whole(environment, "OTEL_BSP_SCHEDULE_DELAY", _DELAY_MS),
        )
    except (ValueError, OSError) as error:  # what the exporter makes of its own variables
        log.warning("telemetry_off", reason=str(error))
        return None
    active = Telemetry(outlet, Sampler.from_environment(environment))
    return active


def shut_down() -> None:
    """Send what there is, within 2 s, and make no more spans; nothing happens when telemetry is off."""
    global active
    ending, active = active, None
    if ending is not None:
        ending.close()


def preload() -> None:
    """Import what `configure` will need, in a process whose forks will call it; a missing package is no error."""
    if otel_environment.is_wanted(os.environ):
        with contextlib.suppress(ModuleNotFoundError, ValueError, OSError):  # `configure` says what is wrong
            from algomesh_observability import exporting

            exporting.import_all()


def _resource(service: str, instance: str, version: str, environment: Mapping[str, str]) -> dict[str, str]:
    named = otel_environment.resource_attributes(environment)
    own = {"service.name": environment.get("OTEL_SERVICE_NAME", "").strip() or service}
    if instance:
        own["service.instance.id"] = instance
    if version:
        own["service.version"] = version
    told = {"telemetry.sdk.name": "opentelemetry", "telemetry.sdk.language": "python", "service.namespace": "algomesh"}
    return {**told, **named, **own}


def _say(event: str, error: str) -> None:
    if error:
        log.warning(event, error=error)
    else:
        log.info(event)


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else default
