"""One fixed instance of everything that crosses a process; its bytes lie beside this file, one file each.

A changed file is a changed wire format, and is reviewed as one. `python -m tests.wire.examples` writes the
files that are missing; to change one, delete it first.
"""

from pathlib import Path

import msgspec

from algomesh_broker import messages, platform
from algomesh_broker.identity import InstanceClaims

FOLDER = Path(__file__).parent
_DIGEST = "0123456789abcdef" * 4

_VERSION_ENTRY = messages.VersionEntry(
    version="1.2.0",
    digest=_DIGEST,
    timeout_s=None,
    attempts=2,
    description="Cleans text",
    published_at=1.5e9,
    min_instances=1,
    pipeline=b'{"kind":"stage","reference":"text/clean/1.0.0"}',
    takes="text",
    gives="json:array[text]",
    cache_s=600.0,
)
_CLAIM = messages.Claim(id="claim1", size_bytes=2**30, host="host", path="/shm/claim1", chunks=2_048)
_RUN_EVENT = messages.RunEvent(
    run="run1",
    attempt=2,
    root="root1",
    parent="parent1",
    algorithm="text/clean",
    version="1.2.0",
    caller="k~abc",
    root_caller="k~root",
    instance="host-1",
    state="failed",
    queued_at=1.5e9,
    started_at=1.5e9 + 0.25,
    ended_at=1.5e9 + 0.5,
    compute_ms=12.5,
    cold_ms=100.0,
    error="algorithm_failed",
)
_MANIFEST = platform.Manifest(
    owner="text",
    name="clean",
    version="1.2.0",
    entry="clean:clean",
    description="Cleans text",
    options=platform.Options(
        gpu=0.25,
        memory_bytes=2**31,
        concurrency=4,
        timeout_s=None,
        idle_s=30.0,
        min_instances=1,
        max_instances=8,
        attempts=1,
        calls=["text/*"],
        preload=["torch"],
        latency_value=2.5,
        prewarm=False,
        cache_s=600.0,
        batch_max=32,
        batch_wait_ms=4.0,
        streams=True,
    ),
    input_schema=b'{"type":"string"}',
    output_schema=b'{"type":"string"}',
    requirements=["numpy>=2"],
    takes="text",
    gives="json:array[text]",
    pipeline=b'{"kind":"stage","reference":"text/clean/1.0.0"}',
    command=["node", "slugify.js"],
    image="node:22-slim",
)
_INSTANCE_ROW = platform.InstanceRow(
    algorithm="text/clean",
    version="1.2.0",
    instance="host-1",
    pid=4242,
    state="ready",
    load=1,
    since=1.5e9,
    reason="parked calls",
    start_ms=42,
    memory_bytes=10**6,
    note="no GPU here: runs on the CPU",
)
_LOG_LINE = platform.LogLine(at=1.5e9, version="1.2.0", instance="host-1", run="run1", line="hello")
_RUN_ROW = platform.RunRow(**msgspec.structs.asdict(_RUN_EVENT))

EXAMPLES: dict[str, msgspec.Struct] = {
    "call": messages.Call(
        run="run1",
        root="root1",
        parent="parent1",
        root_caller="k~root",
        attempt=2,
        session="s1",
        call="7",
        time_left_ms=59_000,
        depth=3,
        budget=9_000,
        content_type="tensor",
        detail="numpy/float32/2",
        payload=memoryview(b"\x00\x00\x80\x3f\x00\x00\x00\x40"),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        grant=b"grant",
        at=3,
        reply_to="k~waiter",
        credit=16,
        spent_ms=12.5,
        feed="host-2",
        writers=["host-3"],
        is_near=True,
    ),
    "claim": _CLAIM,
    "running": messages.Running(
        run="run1", attempt=2, instance="host-1", ready_ms=5, start_ms=42, progress=0.5, message="half", at=3
    ),
    "parked": messages.Parked(run="run1", attempt=2, instance="host-1", at=3),
    "part": messages.Part(
        run="run1",
        attempt=2,
        instance="host-1",
        number=7,
        content_type="tensor",
        detail="numpy/float32/1",
        payload=memoryview(b"\x00\x00\x80\x3f"),
        at=3,
    ),
    "handed-over": messages.HandedOver(run="run1", attempt=2, instance="host-1", at=4),
    "result": messages.Result(
        run="run1",
        attempt=2,
        instance="host-1",
        version="text/clean/1.2.0",
        content_type="text",
        detail="",
        payload=memoryview("grüß".encode()),
        queued_ms=0.5,
        compute_ms=1.25,
        ready_ms=5,
        start_ms=42,
        at=3,
        parts=7,
        cached=True,
        writers=["host-3"],
    ),
    "failure": messages.Failure(
        run="run1",
        attempt=2,
        instance="host-1",
        code="algorithm_failed",
        message="ValueError: no",
        stage="text/clean/1.2.0",
        error_type="ValueError",
        at=3,
        branch=["sentiment", "item 4"],
    ),
    "cancel": messages.Cancel(run="run1", attempt=2, at=3),
    "credit": messages.Credit(run="run1", attempt=2, upto=32, at=3, session="s1", call="7"),
    "forget": messages.Forget(root="root1"),
    "demand": messages.Demand(
        run="run1",
        root="root1",
        parent="parent1",
        root_caller="k~x",
        attempt=2,
        stages=["text/count/1.2.0"],
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
    ),
    "starting": messages.Starting(phase="loading", waiting=3, instances=1),
    "ready": messages.Ready(instance="host-1", start_ms=42),
    "death": messages.Death(instance="host-1", reason="crash", detail="signal 9"),
    "unable": messages.Unable(code="load_failed", message="no such file"),
    "host": messages.HostBeat(launcher="host", alive=False),
    "events": messages.Events(runs=[_RUN_EVENT]),
    "sights": messages.Sights(
        runs=[
            messages.Sight(
                run="run1-1",
                root="root1",
                parent="run0",
                caller="k~x",
                root_caller="k~x",
                attempt=2,
                started_at=1.5e9,
                waited_ms=12.5,
                ended_at=1.5e9 + 1,
                stages=["text/count/1.2.0"],
            )
        ],
        one_in=4,
    ),
    "instance-lease": messages.InstanceLease(
        instance="host-1",
        phase="ended",
        active=1,
        total=7,
        overdue_ms=250,
        failure="load_failed no such file",
        token="ai_body.signature",
    ),
    "machine": messages.Machine(
        launcher="host",
        instances=[
            messages.MachineInstance(
                instance="host-1",
                version="text/clean/1.2.0",
                state="ready",
                age_ms=900,
                start_ms=40,
                reason="called about every 12 s",
                key="gap:0",
                idle_ms=5,
                runs_total=7,
            )
        ],
    ),
    "holds": messages.Holds(
        holds=[
            messages.Hold(
                version="text/clean/1.2.0",
                key="path:root1",
                start_ms=10,
                until_ms=900,
                reason="next after text/split in 1.2 s, p = 0.93",
                gain=4.5,
                caller="k~x",
                launcher="host",
            )
        ],
        released=[("text/count/1.2.0", "gap:0")],
        is_whole=True,
        off=["text/slow/1.0.0"],
    ),
    "ask": messages.Ask(session="s1", call="7", body=b"\x80"),
    "answer": messages.Answer(body=b"\x80", code="bad_message", message="no"),
    "algorithm": messages.AlgorithmEntry(
        owner="text", name="clean", versions=[_VERSION_ENTRY], aliases={"stable": {"1.2.0": 90, "2.0.0": 10}}
    ),
    "instance-claims": InstanceClaims(
        owner="text", name="clean", version="1.2.0", instance="host-1", expires=1.5e9, by="k~x"
    ),
    "platform-upload": platform.Upload(digest=_DIGEST, size_bytes=100, offset=50, data=b"piece"),
    "platform-uploaded": platform.Uploaded(received_bytes=55),
    "platform-publish": platform.Publish(manifest=_MANIFEST, digest=_DIGEST),
    "platform-published": platform.Published(algorithm="text/clean", version="1.2.0", digest=_DIGEST, created=True),
    "platform-fetch-archive": platform.FetchArchive(digest=_DIGEST, offset=50),
    "platform-archive-chunk": platform.ArchiveChunk(size_bytes=100, data=b"piece"),
    "platform-fetch-manifest": platform.FetchManifest(version="1.2.0"),
    "platform-stored-manifest": platform.StoredManifest(manifest=_MANIFEST, digest=_DIGEST),
    "platform-attach": platform.Attach(version="1.2.0", token="ai_body.signature"),
    "platform-attached": platform.Attached(
        instance="x0123abcd-1",
        token="ai_body.signature",
        expires=1.5e9,
        route_key="UROUTE",
        options=platform.Options(concurrency=4),
    ),
    "platform-alias-set": platform.AliasSet(alias="stable", weights={"1.2.0": 90, "2.0.0": 10}),
    "platform-route-ask": platform.RouteAsk(route=b"route", lifetime_s=3_600.0, token="ai_token"),
    "platform-route-grant": platform.RouteGrant(grant=b"grant", expires=1.5e9),
    "platform-lease": platform.Lease(root="root1", runs=4),
    "platform-leased": platform.Leased(runs=4),
    "platform-key-create": platform.KeyCreate(name="laptop", scopes=["call:text/*"]),
    "platform-key-created": platform.KeyCreated(key="am_x_y", id="x", name="laptop", scopes=["call:text/*"]),
    "platform-key-list": platform.KeyList(),
    "platform-key-rows": platform.KeyRows(
        keys=[platform.KeyRow(id="x", name="laptop", scopes=["admin"], created_at=1.5e9, revoked_at=1.6e9)]
    ),
    "platform-key-revoke": platform.KeyRevoke(key="laptop"),
    "platform-done": platform.Done(count=2),
    "platform-ps": platform.Ps(),
    "platform-instance-rows": platform.InstanceRows(instances=[_INSTANCE_ROW]),
    "platform-stop": platform.Stop(version="1.2.0"),
    "platform-logs": platform.Logs(version="1.2.0", run="run1", lines=10),
    "platform-log-lines": platform.LogLines(lines=[_LOG_LINE]),
    "platform-history": platform.History(since=1.5e9, limit=10, after="run1"),
    "platform-may-call": platform.MayCall(caller="k~x", algorithms=["text/clean"]),
    "platform-may-called": platform.MayCalled(algorithms=["text/clean"]),
    "platform-graph": platform.Graph(algorithm="text/clean"),
    "platform-graph-edges": platform.GraphEdges(
        edges=[
            platform.Edge(
                caller_of="text/split", algorithm="text/clean", probability=0.93, delay_s=1.2, count=41.0, in_time=0.8
            )
        ]
    ),
    "platform-starts": platform.Starts(limit=10, algorithm="text/clean"),
    "platform-start-rows": platform.StartRows(
        starts=[
            platform.StartRow(
                instance="host-1",
                algorithm="text/clean",
                version="1.2.0",
                kind="next",
                reason="next after text/split in 1.2 s, p = 0.93",
                started_at=1.5e9,
                ready_at=1.5e9 + 1,
                used_at=1.5e9 + 2,
                ended_at=1.5e9 + 3,
                held_s=1.5,
                saved_s=0.9,
                gpu=0.25,
            )
        ]
    ),
    "platform-savings": platform.Savings(since=1.5e9, calls=20),
    "platform-savings-row": platform.SavingsRow(
        starts={"call": 3, "next": 2},
        used={"next": 1},
        gpu_s_held=12.5,
        gpu_s_for_nothing=1.5,
        saved_s=3.5,
        calls=40,
        cold_calls=3,
        spared={"next": 1, "kept": 4},
        saved={"next": 0.5, "kept": 3.0},
        rows=[
            platform.SparedRow(
                run="run1",
                root="root1",
                algorithm="text/clean",
                version="1.2.0",
                caller="k~x",
                at=1.5e9,
                seconds=0.75,
                why="kept",
                count=4,
            )
        ],
    ),
    "platform-runs": platform.Runs(limit=10, algorithm="text/clean", root="root1"),
    "platform-run-rows": platform.RunRows(runs=[_RUN_ROW]),
}


def path_of(name: str) -> Path:
    """Where the bytes of an example lie, as hexadecimal digits, 64 to a line."""
    return FOLDER / f"{name}.hex"


def read(name: str) -> bytes:
    """The bytes that were agreed on. Raises FileNotFoundError."""
    return bytes.fromhex(path_of(name).read_text())


def write_missing() -> None:
    """Write the files that are not there."""
    for name, example in EXAMPLES.items():
        if not path_of(name).exists():
            digits = msgspec.msgpack.encode(example).hex()
            lines = [digits[start : start + 64] for start in range(0, len(digits), 64)]
            path_of(name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_missing()
