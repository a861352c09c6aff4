"""The mesh as a whole: is it well, and if not, where to look."""

from typing import Final

from dashboards.panels import board, lines, number
from dashboards.queries import Json, or_zero, quantile, quantiles, query, rate, rates

# What a caller did wrong, or wanted, says nothing about the mesh.
_FAULTS: Final = '{code!~"ok|cancelled|bad_input|bad_reference|unknown_.*|permission_denied"}'
_OURS: Final = '{job="algomesh"}'
_CALLS: Final = rate("algomesh_calls_total")
_PARKED: Final = "max by (algorithm, version) (algomesh_parked_calls)"  # every launcher counts all of them


def make() -> Json:
    """The dashboard."""
    return board(
        "algomesh-overview",
        "Mesh overview",
        "Calls, errors, latency, queues, instances and the mesh's own programs.",
        [
            ("Now", 4, _now()),
            ("Calls", 8, _calls()),
            ("Latency", 8, _latency()),
            ("Queues and instances", 8, _queues()),
            ("Gateway", 8, _gateway()),
            ("Ledger and registry", 8, _records()),
            ("Programs", 8, _programs()),
        ],
    )


def _now() -> list[Json]:
    failing = f"({or_zero(rate('algomesh_calls_total', where=_FAULTS))}) / {_CALLS}"
    cold = f"{rate('algomesh_cold_calls_total')} / {_CALLS}"
    p95, down = quantile(0.95, "algomesh_call_seconds"), or_zero(f"count(up{_OURS} == 0)")
    lag = "max(algomesh_ledger_lag_seconds)"
    return [
        number("Calls", _CALLS, "reqps", "Calls that end, a second."),
        number(
            "Error share", failing, "percentunit", "Calls that the mesh or an algorithm failed.", warn=0.01, bad=0.05
        ),
        number("Latency p95", p95, "s", "From call to end, cold starts included."),
        number("Cold share", cold, "percentunit", "Calls that waited for a cold start.", warn=0.05, bad=0.2),
        number("Parked", or_zero(f"sum({_PARKED})"), "short", "Calls that wait for an instance.", warn=100, bad=1_000),
        number("Instances", or_zero("sum(algomesh_instances)"), "short", "In every state."),
        number("Ledger lag", lag, "s", "How far the table of runs is behind.", warn=5, bad=30),
        number("Programs down", down, "short", "Programs that Prometheus does not reach.", warn=1, bad=1),
    ]


def _calls() -> list[Json]:
    busiest = query(f"topk(10, {rate('algomesh_calls_total', 'algorithm')})", "{{algorithm}}")
    errors = rates("algomesh_calls_total", "code", '{code!="ok"}')
    return [
        lines("Calls by algorithm", [busiest], "reqps", "The ten that are called most.", is_stacked=True),
        lines("Errors by code", errors, "reqps", "Calls that did not end well, by why.", is_stacked=True),
    ]


def _latency() -> list[Json]:
    took, queued = quantiles("algomesh_call_seconds"), quantiles("algomesh_queue_seconds")
    return [
        lines("Call latency", took, "s", "From call to end. A diamond is one call: click it for its trace."),
        lines("Queue wait", queued, "s", "What of it is waiting for a start or a slot."),
    ]


def _queues() -> list[Json]:
    parked = query(f"sum by (algorithm) ({_PARKED})", "{{algorithm}}")
    oldest = query("max by (algorithm) (algomesh_parked_age_seconds)", "{{algorithm}}")
    states = query("sum by (state) (algomesh_instances)", "{{state}}")
    given = [
        query("sum(algomesh_instances) / sum(algomesh_instances_limit)", "instances"),
        query("sum(algomesh_instance_memory_reserved_bytes) / sum(algomesh_instance_memory_limit_bytes)", "memory"),
        query("sum(algomesh_gpus_held) / (sum(algomesh_gpus) > 0)", "GPUs"),
    ]
    return [
        lines("Parked calls", [parked], "short", "Calls in the stream, by algorithm."),
        lines("Oldest parked call", [oldest], "s", "How long the oldest of them has waited."),
        lines("Instances by state", [states], "short", "Of all launchers.", is_stacked=True),
        lines("Given out", given, "percentunit", "What instances have of what they may have together."),
    ]


def _gateway() -> list[Json]:
    answers = rates("algomesh_http_requests_total", "status")
    took = quantiles("algomesh_http_request_seconds", at=(0.5, 0.95))
    under_way = [
        query("sum(algomesh_http_requests_in_flight)", "requests"),
        query("sum(algomesh_gateway_keys)", "keys"),
    ]
    return [
        lines("HTTP requests", answers, "reqps", "By status; 0 is a client that had gone.", is_stacked=True),
        lines("HTTP latency", took, "s", "From a request's head to its answer's end."),
        lines("HTTP under way", under_way, "short", "Requests that are being answered, and keys in use."),
    ]


def _records() -> list[Json]:
    rows = query(rate("algomesh_ledger_rows_total"), "rows")
    dropped = query(rate("algomesh_ledger_dropped_total", "reason"), "dropped: {{reason}}")
    delay = quantiles("algomesh_ledger_delay_seconds", at=(0.5, 0.99))
    asked = quantiles("algomesh_request_seconds", "program", at=(0.95,))
    auth = rates("algomesh_auth_seconds_count", "token, answer")
    return [
        lines("Rows written", [rows, dropped], "wps", "Into the table of runs, and what could not be."),
        lines("Ledger delay", delay, "s", "From an event's arrival in its stream to its row."),
        lines("Requests to programs", asked, "s", "What programs are asked on NATS: publish, runs, ps."),
        lines("Connections", auth, "cps", "The registry's answers to who connects."),
    ]


def _programs() -> list[Json]:
    cpu = rates("process_cpu_seconds_total", "program", _OURS)
    memory = query(f"sum by (program) (process_resident_memory_bytes{_OURS})", "{{program}}")
    servers = query("min by (program, server) (algomesh_connected)", "{{program}} to {{server}}")
    disk = query("min by (program) (algomesh_state_free_bytes / algomesh_state_size_bytes)", "{{program}}")
    return [
        lines("Processor time", cpu, "percentunit", "Of one core."),
        lines("Memory", [memory], "bytes", "Resident, without instances."),
        lines("Servers that answer", [servers], "short", "1: yes, 0: no."),
        lines("Free disk", [disk], "percentunit", "Of the file system with the state directory."),
    ]
