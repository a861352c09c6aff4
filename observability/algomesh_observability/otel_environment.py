"""The standard OTEL_* variables as this mesh reads them, and which of them instances are given.

Traces go out where OTEL_EXPORTER_OTLP_ENDPOINT (or the variable of that name for traces) is set, and nowhere else.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_OF_INSTANCES: Final = "ALGOMESH_INSTANCE_OTLP_ENDPOINT"
# What opens a collector is in these; user code can read whatever its instance is given.
_SECRET: Final = (
    *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
    *("OTEL_EXPORTER_OTLP_CLIENT_KEY", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY"),
)
_PASSED_ON: Final = (
    *(_ENDPOINT, _TRACES_ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    *("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    *("OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
    *("OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
    *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"),
    *("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
    "OTEL_RESOURCE_ATTRIBUTES",
)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are to be sent anywhere."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() not in ("", "otlp"):
        return False
    return any(environment.get(name, "").strip() for name in (_ENDPOINT, _TRACES_ENDPOINT))


def why_not(environment: Mapping[str, str]) -> str:
    """What is asked for that we do not do, as a sentence; empty when there is nothing."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip().lower() != "http/protobuf":
        return (
            f"traces are sent as http/protobuf, not {protocol.strip()}; name the collector's port for HTTP, often 4318"
        )
    return ""


def for_instances(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an instance gets; none where it could send nothing without a secret.

    Where the collector wants headers or a client's key, instances are sent to ALGOMESH_INSTANCE_OTLP_ENDPOINT, a
    collector that wants none; without it they make no spans.
    """
    if not is_wanted(environment) or why_not(environment):
        return {}
    given = {name: environment[name] for name in _PASSED_ON if environment.get(name, "").strip()}
    own = environment.get(_OF_INSTANCES, "").strip()
    if own:
        return {**given, _ENDPOINT: own, _TRACES_ENDPOINT: ""}
    return {} if needs_secret(environment) else given


def needs_secret(environment: Mapping[str, str]) -> bool:
    """Whether the collector can only be reached with something that user code must not see."""
    if any(environment.get(name, "").strip() for name in _SECRET):
        return True
    return any("@" in urlsplit(environment.get(name, "")).netloc for name in (_ENDPOINT, _TRACES_ENDPOINT))


def resource_attributes(environment: Mapping[str, str]) -> dict[str, str]:
    """OTEL_RESOURCE_ATTRIBUTES, `name=value,…`; what is not a pair is left out."""
    pairs = (pair.partition("=") for pair in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    return {name.strip(): unquote(value.strip()) for name, equals, value in pairs if name.strip() and equals}
